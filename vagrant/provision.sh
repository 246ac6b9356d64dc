#!/usr/bin/env bash
# Makes a Debian 12 machine a node. Safe to run again: what is there stays, what is missing is added.
#
#   provision.sh packages SOURCE              Debian packages, meshd itself in /opt/meshd, the demo's image    (works in a chroot, too)
#   provision.sh node ADDRESS ROLE [FIRST]    meshd as a service; ROLE is first, manager or worker (FIRST: address of
#                                             the first node), or none: joining is left to you
set -euo pipefail

venv=/opt/meshd
image=/var/lib/meshd-demo/image.tar
socket=/run/meshd/meshd.sock
key=/home/vagrant/.ssh/cluster
# how long the first node may take to come up
patience_s=900

say() { printf '\033[2m· %s\033[0m\n' "$*"; }
die() { printf 'provision: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "run this as root"

packages() {
  local source=$1 missing=() package
  [ -f "$source/pyproject.toml" ] || die "$source has no meshd in it"
  # Debian's etcd-server starts an etcd at installation; managers bring their own, on the same ports
  ln -sf /dev/null /etc/systemd/system/etcd.service
  for package in docker.io apparmor etcd-server nftables iproute2 iptables kmod python3 python3-venv busybox-static curl ca-certificates; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  if [ "${#missing[@]}" -gt 0 ]; then
    say "installing ${missing[*]}"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "${missing[@]}" </dev/null
  fi
  local wanted stamp=$venv/.installed
  wanted=$(cd "$source" && find pyproject.toml mesh dnsd orchestrator -name '*.toml' -o -name '*.py' | LC_ALL=C sort | xargs cat | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "installing meshd into $venv"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    # pip builds in the source directory, which may be read-only or somebody's working tree
    local copy
    copy=$(mktemp -d)
    (cd "$source" && cp -r pyproject.toml README.md mesh dnsd orchestrator "$copy")
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$copy"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$copy"
    rm -rf "$copy"
    mkdir -p "$(dirname "$image")"
    "$venv/bin/python" -c 'import sys; from orchestrator.lab import image; sys.stdout.buffer.write(image.rootfs())' >"$image"
    ln -sf "$venv/bin/meshd" /usr/local/bin/meshd
    printf '%s' "$wanted" >"$stamp"
  fi
}

unit() {
  cat <<END
[Unit]
Description=meshd: routing mesh, service discovery, orchestrator
After=network-online.target docker.service
Wants=network-online.target docker.service

[Service]
ExecStart=$venv/bin/meshd daemon --advertise-addr $1
Restart=always
RestartSec=1
# what else it started outlives it on purpose: DNS and the containers' rules go on while meshd restarts
KillMode=process
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
END
}

swarm() { docker -H "unix://$socket" "$@"; }

until_it_answers() {
  local what=$1 end=$((SECONDS + patience_s))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "$what: not within $patience_s s; see journalctl -u meshd"
    sleep 1
  done
}

node() {
  local address=$1 role=$2 first=${3:-} wanted
  if [ ! -e /etc/docker/daemon.json ]; then
    mkdir -p /etc/docker
    # a restart of the Engine then leaves the tasks alone
    echo '{"live-restore": true}' >/etc/docker/daemon.json
    systemctl restart docker
  fi
  systemctl is-active --quiet docker || systemctl start docker
  wanted=$(unit "$address")
  if [ "$(cat /etc/systemd/system/meshd.service 2>/dev/null)" != "$wanted" ]; then
    printf '%s\n' "$wanted" >/etc/systemd/system/meshd.service
    systemctl daemon-reload
    systemctl enable --quiet meshd
  fi
  systemctl is-active --quiet meshd || systemctl start meshd
  until_it_answers "meshd" swarm info
  local version
  for version in v1 v2; do
    docker image inspect "meshd/demo:$version" >/dev/null 2>&1 ||
      docker import -c 'CMD ["serve"]' -c 'EXPOSE 80' -c "ENV VERSION=$version PATH=/bin" "$image" "meshd/demo:$version" >/dev/null
  done
  [ "$(swarm info --format '{{.Swarm.LocalNodeState}}')" = inactive ] || { say "already in the cluster"; return; }
  if [ "$role" = none ]; then
    return
  elif [ "$role" = first ]; then
    say "making the cluster"
    # VirtualBox gives every machine 10.0.2.15 for its way out, which the default pool, 10.0.0.0/8, would cover
    swarm swarm init --advertise-addr "$address" --default-addr-pool 10.64.0.0/10 --default-addr-pool-mask-length 20 >/dev/null
  else
    say "joining $first as $role"
    chmod 600 "$key"
    local ask=(ssh -i "$key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=5
      "vagrant@$first" sudo docker -H "unix://$socket" swarm join-token -q "$role")
    until_it_answers "the first node, $first" "${ask[@]}"
    swarm swarm join --token "$("${ask[@]}")" --advertise-addr "$address" "$first:2377"
  fi
}

case "${1:-}" in
  packages) packages "$2" ;;
  node) shift && node "$@" ;;
  *) die "packages SOURCE, or node ADDRESS ROLE [FIRST]" ;;
esac
