#!/bin/bash
# install.sh ADDRESS: netd and the docker command line alone, on a Debian machine.
# Expects /tmp/netd and /tmp/netd.service.
set -euo pipefail
address=$1

install -m 0755 /tmp/netd /usr/local/bin/netd
install -m 0644 /tmp/netd.service /etc/systemd/system/netd.service
mkdir -p /etc/systemd/system/netd.service.d
cat >/etc/systemd/system/netd.service.d/address.conf <<UNIT
[Service]
ExecStart=
ExecStart=/usr/local/bin/netd daemon --advertise-addr $address
UNIT

if ! command -v docker >/dev/null; then
  # The command is in the engine's package; unpacked, it brings no engine.
  dir=$(mktemp -d)
  apt-get -qq update
  (cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download docker.io && dpkg-deb -x ./docker.io_*.deb .)
  install -m 0755 "$dir/usr/bin/docker" /usr/local/bin/docker
  rm -rf "$dir"
fi

systemctl daemon-reload
systemctl enable netd.service
systemctl restart netd.service
until docker -H unix:///run/netd/netd.sock version >/dev/null 2>&1; do
  systemctl is-active --quiet netd.service || { journalctl -u netd.service -n 20 --no-pager >&2; exit 1; }
  sleep 0.2
done
