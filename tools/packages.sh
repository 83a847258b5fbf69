#!/bin/bash
# Installs the Debian packages that are missing, or names them: tools/packages.sh demo|test|bench
# Called by the Makefile. It never fails a user who is not root: what is missing then costs a part of the demo, or a tier of the tests, and is named.
set -u
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# package: what it is looked for by (a program, or an absolute path). Looked for by what it gives, so that another source of it (docker-ce) will do.
demo=(
    python3-venv:@venv            # .venv
    ca-certificates:/etc/ssl/certs/ca-certificates.crt
    mmdebstrap:mmdebstrap         # bulle pull deb:bookworm
    uidmap:newuidmap              # id ranges for an ordinary user
    nftables:nft                  # networks and published ports
)
case $(uname -m) in               # virtual machines, and their volumes
    x86_64) demo+=(qemu-system-x86:@qemu) ;;
    aarch64) demo+=(qemu-system-arm:@qemu) ;;
    riscv64) demo+=(qemu-system-misc:@qemu) ;;
esac
tests=(
    busybox-static:@busybox umoci:umoci skopeo:skopeo docker-registry:docker-registry crun:crun runc:runc podman:podman
    docker.io:dockerd docker-compose:docker-compose containerd:containerd bubblewrap:bwrap gcc:gcc libc6-dev:/usr/include/stdio.h strace:strace jq:jq iptables:iptables
    libcap2-bin:capsh sudo:sudo tmux:tmux util-linux:setpriv iproute2:ip procps:ps git:git xz-utils:xz zstd:zstd e2fsprogs:mkfs.ext4
    erofs-utils:dump.erofs attr:setfattr qemu-user-static:qemu-aarch64-static iputils-ping:ping systemd:systemd-analyze openssh-client:ssh-agent openssh-server:/usr/sbin/sshd bind9-dnsutils:dig
    ufw:ufw firewalld:firewalld dbus:dbus-daemon
    qemu-system-x86:qemu-system-x86_64 qemu-system-arm:qemu-system-aarch64 qemu-system-misc:qemu-system-riscv64  # virtual machines
    qemu-utils:qemu-img ovmf:/usr/share/OVMF syslinux:syslinux syslinux-common:/usr/lib/syslinux/mbr syslinux-efi:/usr/lib/SYSLINUX.EFI isolinux:/usr/lib/ISOLINUX
    mtools:mcopy dosfstools:mkfs.vfat xorriso:xorriso debian-installer-12-netboot-amd64:/usr/lib/debian-installer/images/12/amd64/text  # whole machines
    postgresql-client:psql mariadb-client:mariadb redis-tools:redis-cli curl:curl
)

benchmarks=(buildah:buildah isal:igzip wrk:wrk iperf3:iperf3 dnsperf:dnsperf)

case ${1:-} in
    demo) wanted=("${demo[@]}") ;;
    test) wanted=("${demo[@]}" "${tests[@]}") ;;
    bench) wanted=("${demo[@]}" "${tests[@]}" "${benchmarks[@]}") ;;
    *) echo "usage: tools/packages.sh demo|test|bench" >&2; exit 2 ;;
esac

# shellcheck source=tools/python.sh
. "$(dirname "$0")/python.sh"

present() {
    case $1 in
        # Debian's python3 has ensurepip only with python3-venv; a .venv that is there already needs neither.
        @venv) [ -x .venv/bin/pip ] || { find_python && "$python" -c 'import ensurepip, venv' 2>/dev/null; } ;;
        @qemu) command -v "qemu-system-$(uname -m)" >/dev/null 2>&1 ;;
        @busybox) busybox=$(command -v busybox) && ! grep -q -m1 -a '/ld-linux' "$busybox" ;;
        /*) [ -e "$1" ] ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

missing=()
for entry in "${wanted[@]}"; do
    present "${entry#*:}" || missing+=("${entry%%:*}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "Missing Debian packages: ${missing[*]}"
    echo "  (not root, so they are not installed; this works: sudo apt-get install --no-install-recommends ${missing[*]})"
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing, and no apt-get here to install them (names are Debian's): ${missing[*]}"
    exit 0
fi

echo "Installing the Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# dockerd, containerd and the registry are wanted as programs to compare with, not as services of this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
    trap 'rm -f $policy' EXIT
fi
log=$(mktemp)
install() { apt-get -qq -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install "$@" >>"$log" 2>&1 </dev/null; }
apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update >>"$log" 2>&1 </dev/null
if ! install "${missing[@]}"; then
    # One that cannot be had must not cost the others.
    for package in "${missing[@]}"; do
        install "$package" || echo "  could not install $package: $(grep -E '^(E|W):' "$log" | tail -n 1)"
    done
fi
rm -f "$log"
# Nor at the next boot: nobody asked for another firewall on this machine.
for entry in "${missing[@]}"; do
    case $entry in
        firewalld | ufw | docker.io | containerd | docker-registry)
            command -v systemctl >/dev/null 2>&1 && systemctl --quiet disable "${entry%.io}.service" >/dev/null 2>&1
            ;;
        openssh-server)
            command -v systemctl >/dev/null 2>&1 && systemctl --quiet disable ssh.service >/dev/null 2>&1
            ;;
    esac
done
exit 0
