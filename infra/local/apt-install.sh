#!/bin/sh
# apt-install.sh PACKAGE: installs a package of Debian where that is possible and allowed; else says in a few
# words why not, and fails. No service that the package brings is started.
set -u

package=$1
log=.fpso/logs/apt.log
policy=/usr/sbin/policy-rc.d # asked by every package before it starts a service; 101 forbids it

fail() {
    echo "$1"
    exit 1
}

command -v apt-get >/dev/null || fail "this machine has no apt-get to install it with"
if [ "$(id -u)" = 0 ]; then
    sudo=""
elif sudo -n true 2>/dev/null; then
    sudo="sudo -n"
else
    fail "only root may install it (sudo apt-get install $package)"
fi
mkdir -p .fpso/logs

if [ ! -e "$policy" ]; then
    trap '$sudo rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
fi

install() {
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install \
        -y --no-install-recommends "$package" >>"$log" 2>&1 </dev/null
}

echo "Installing $package (apt-get install $package; its output goes to $log) ..." >&2
install || { $sudo apt-get update >>"$log" 2>&1 && install; } || fail "apt-get could not install it, see $log"
