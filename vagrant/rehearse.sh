#!/usr/bin/env bash
# Plays `vagrant up` and smoke.py on this machine without the internet's boxes, KVM or systemd: libvirt in namespaces of its own, QEMU that
# interprets, a box made here by debootstrap (its packages from Debian's mirror). Everything it starts ends with it.
#
#   rehearse.sh [NODES]      default 3; with 2 it takes half the time. STATE=dir keeps the root file system for the next time.
#
# Needs root and: apt-get install --no-install-recommends vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients qemu-system-x86 \
#   qemu-utils debootstrap dnsmasq-base rsync openssh-client e2fsprogs
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repository=$(dirname "$here")
state=${STATE:-/var/tmp/meshd-rehearsal}
# where this machine has its own packages from
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' | head -n 1)}
nodes=${1:-3}

say() { printf '\033[2m· %s %s\033[0m\n' "$(date +%H:%M:%S)" "$*"; }
die() { printf 'rehearse: %s\n' "$*" >&2; exit 2; }
[ -n "$mirror" ] || die "apt knows no mirror of Debian: run apt-get update, or give one (MIRROR=...)"

# ---- a box: Debian 12 with everything provision.sh would install -------------------------------------------------------------------

root=$state/root
sources() { rsync -a --delete --delete-excluded --exclude .git --exclude .venv --exclude tests --exclude '.*_cache' --exclude __pycache__ "$@"; }

root_file_system() {
  [ -e "$root/.complete" ] && return
  say "debootstrap"
  rm -rf "$root"
  mkdir -p "$root"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,udev,openssh-server,sudo,ifupdown,isc-dhcp-client,iproute2,procps,ca-certificates,rsync,curl,kmod \
    bookworm "$root" "$mirror" >"$state/debootstrap.log" 2>&1 || die "debootstrap failed: $state/debootstrap.log"
  touch "$root/.complete"
}

# in a mount namespace of its own: nothing stays mounted
in_root() {
  unshare --mount -- sh -c '
    mount --rbind "$1" "$1" && mount -t proc proc "$1/proc" && mount --bind /dev "$1/dev"
    root=$1; shift
    exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels "$@"
  ' in_root "$root" "$@" </dev/null
}

furnish() {
  say "packages"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  # Python packages come by this machine's pip, however it is configured; in the box there is no index
  mkdir -p "$root/wheels" "$root/meshd"
  "$repository/.venv/bin/python" -m pip download -qq --disable-pip-version-check -d "$root/wheels" "$repository" setuptools wheel
  rm -f "$root"/wheels/meshd-*
  sources "$repository/" "$root/meshd/"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod 755 "$root/usr/sbin/policy-rc.d"
  { in_root bash /meshd/vagrant/provision.sh packages /meshd && in_root apt-get install -yq --no-install-recommends linux-image-amd64; } \
    >"$state/packages.log" 2>&1 || die "packages: $state/packages.log"
  rm "$root/usr/sbin/policy-rc.d"
  rm -rf "$root/meshd" "$root"/var/cache/apt/archives/*.deb
  # what a box has: the user, its well-known key, sudo, an address by DHCP
  in_root sh -c 'id vagrant >/dev/null 2>&1 || useradd -m -s /bin/bash vagrant'
  install -d -m 700 "$root/home/vagrant/.ssh"
  cp "$(ruby -e 'puts Gem::Specification.find_by_name("vagrant").gem_dir')/keys/vagrant.pub" "$root/home/vagrant/.ssh/authorized_keys"
  in_root chown -R vagrant:vagrant /home/vagrant/.ssh
  echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
  printf 'auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n' >"$root/etc/network/interfaces"
  printf '[global]\nno-index = true\nfind-links = /wheels\n' >"$root/etc/pip.conf"
  echo '/dev/vda / ext4 defaults,noatime 0 1' >"$root/etc/fstab"
  echo rehearsal >"$root/etc/hostname"
  # ssh must not wait for a name server that isn't there
  echo 'UseDNS no' >"$root/etc/ssh/sshd_config.d/box.conf"
  rm -f "$root/etc/resolv.conf"
}

box() {
  local kernel work=$state/work
  say "box"
  rm -rf "$work"
  mkdir -p "$work"
  kernel=$(ls "$root"/boot/vmlinuz-* | sort -V | tail -n 1)
  cp "$kernel" "$work/vmlinuz"
  cp "${kernel/vmlinuz/initrd.img}" "$work/initrd"
  truncate -s 6G "$work/disk"
  mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 -d "$root" "$work/disk"
  qemu-img convert -O qcow2 "$work/disk" "$work/box.img"
  rm "$work/disk"
  echo '{"provider": "libvirt", "format": "qcow2", "virtual_size": 6}' >"$work/metadata.json"
  tar -C "$work" -cf "$work/rehearsal.box" metadata.json box.img
  rm "$work/box.img"
}

# ---- libvirt and the machines, in namespaces of their own ---------------------------------------------------------------------------

settings() {
  cat <<END
Vagrant.configure("2") do |config|
  config.vm.boot_timeout = 900
  config.vm.provider :libvirt do |libvirt|
    libvirt.driver = "qemu"
    libvirt.cpu_mode = "custom"
    # what numpy and others are built for
    libvirt.cpu_model = "Nehalem"
    libvirt.kernel = "$state/work/vmlinuz"
    libvirt.initrd = "$state/work/initrd"
    libvirt.cmd_line = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet"
    libvirt.management_network_mode = "none"
    libvirt.graphics_type = "none"
    libvirt.video_type = "none"
    libvirt.qemu_use_session = false
  end
end
END
}

alone() {
  # process 1 of its namespaces: when it ends, so does all that it started, and the network and the mounts go
  mount -t proc proc /proc
  ip link set lo up
  local directory
  for directory in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do
    mkdir -p "$directory"
    mount -t tmpfs tmpfs "$directory"
  done
  # images are big: on the disk, not in memory
  mkdir -p /var/lib/libvirt/images /etc/libvirt/qemu/networks "$state/work/images"
  mount --bind "$state/work/images" /var/lib/libvirt/images
  cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
END
  printf 'auth_unix_rw = "none"\nauth_unix_ro = "none"\nunix_sock_group = "root"\n' >/etc/libvirt/libvirtd.conf
  libvirtd --daemon
  export VAGRANT_HOME=$state/work/home VAGRANT_DEFAULT_PROVIDER=libvirt VAGRANT_CHECKPOINT_DISABLE=1 NODES=$nodes BOX=rehearsal
  export VAGRANT_DOTFILE_PATH=$state/work/machines LIBVIRT_DEFAULT_URI=qemu:///system
  mkdir -p "$VAGRANT_HOME"
  settings >"$VAGRANT_HOME/Vagrantfile"
  cd "$here"
  say "vagrant box add"
  vagrant box add --no-tty --name rehearsal "$state/work/rehearsal.box" >"$state/box.log" 2>&1 || { tail -n 20 "$state/box.log"; return 1; }
  say "vagrant up ($nodes machines)"
  vagrant up --no-tty >"$state/up.log" 2>&1 || { tail -n 40 "$state/up.log"; return 1; }
  say "vagrant up, again: nothing to do"
  vagrant provision --no-tty >"$state/again.log" 2>&1 || { tail -n 40 "$state/again.log"; return 1; }
  say "smoke.py"
  python3 "$here/smoke.py" || return 1
  say "vagrant destroy"
  vagrant destroy --no-tty --force >"$state/destroy.log" 2>&1
}

if [ "${1:-}" = --alone ]; then
  nodes=$2
  alone
  exit
fi

[ "$(id -u)" = 0 ] || die "run this as root"
for program in vagrant libvirtd qemu-system-x86_64 qemu-img debootstrap dnsmasq rsync mkfs.ext4; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || die "$program is missing; the head of this file says what to install"
done
mkdir -p "$state"
trap 'rm -rf "$state/work"; [ -n "${STATE:-}" ] || rm -rf "$state"' EXIT
root_file_system
furnish
box
unshare --net --mount --pid --fork --kill-child -- bash "$0" --alone "$nodes"
say "done"
