#!/bin/sh
# Makes sure that this machine has rabbitmq-server, where that is possible and allowed. Never fails: without a
# broker the system runs all the same. Debian's own broker, which the package would start, is left stopped.
set -u

for server in /usr/lib/rabbitmq/bin/rabbitmq-server "$(command -v rabbitmq-server)"; do
    [ -x "$server" ] && exit 0
done
[ -n "${FPSO_AMQP_URL:-}" ] && exit 0 # somebody else's is used

log=.fpso/logs/apt.log
[ "$(id -u)" = 0 ] && sudo="" || sudo="sudo -n"
dpkg -s erlang-base >/dev/null 2>&1 && had_erlang=yes || had_erlang=no

reason=$(sh infra/local/apt-install.sh rabbitmq-server) || {
    echo "RabbitMQ is not installed, and $reason: running without a broker." >&2
    exit 0
}

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
