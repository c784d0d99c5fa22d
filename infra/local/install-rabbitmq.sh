#!/bin/sh
# Makes sure that this machine has rabbitmq-server, where that is possible and allowed. Never fails: without a
# broker the system runs all the same. Debian's own broker, which the package would start, is left stopped.
set -u

for server in /usr/lib/rabbitmq/bin/rabbitmq-server "$(command -v rabbitmq-server)"; do
    [ -x "$server" ] && exit 0
done
[ -n "${FPSO_AMQP_URL:-}" ] && exit 0 # somebody else's is used

go_without() {
    echo "RabbitMQ is not installed, and $1: running without a broker." >&2
    exit 0
}

command -v apt-get >/dev/null || go_without "this machine has no apt-get to install it with"
if [ "$(id -u)" = 0 ]; then
    sudo=""
elif sudo -n true 2>/dev/null; then
    sudo="sudo -n"
else
    go_without "only root may install it (sudo apt-get install rabbitmq-server)"
fi

log=.fpso/logs/apt.log
policy=/usr/sbin/policy-rc.d # asked by every package before it starts a service; 101 forbids it
mkdir -p .fpso/logs
dpkg -s erlang-base >/dev/null 2>&1 && had_erlang=yes || had_erlang=no

if [ ! -e "$policy" ]; then
    trap '$sudo rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
fi

install() {
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install \
        -y --no-install-recommends rabbitmq-server >>"$log" 2>&1 </dev/null
}

echo "Installing RabbitMQ (apt-get install rabbitmq-server; its output goes to $log) ..."
install || { $sudo apt-get update >>"$log" 2>&1 && install; } || go_without "apt-get could not install it, see $log"

# Neither now nor after the next start of the machine: it was installed for this project's private one.
units=rabbitmq-server.service
[ "$had_erlang" = no ] && units="$units epmd.socket epmd.service"
if [ -d /run/systemd/system ]; then
    # shellcheck disable=SC2086 # several words are meant
    $sudo systemctl disable --now $units >>"$log" 2>&1
elif command -v update-rc.d >/dev/null; then
    $sudo update-rc.d rabbitmq-server disable >>"$log" 2>&1
fi
exit 0
