# Makes the initramfs of Debian's initramfs-tools and of dracut for a tree, each as its package makes it for
# any machine. The tree stays as it is: what is installed goes to memory.
#
# peer-initramfs.sh TREE OUT [OPTION OF APT]…
set -eu
tree=$1 out=$2
shift 2
mount --make-rprivate /
mount -t tmpfs none "$out"
mkdir "$out/upper" "$out/work" "$out/root"
root=$out/root
mount -t overlay -o "lowerdir=$tree,upperdir=$out/upper,workdir=$out/work" none "$root"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs none "$root/tmp"
cp /etc/resolv.conf "$root/etc/resolv.conf"
kernel=$(ls "$root/usr/lib/modules")
export DEBIAN_FRONTEND=noninteractive
{
    chroot "$root" mkinitramfs -o /tmp/initramfs-tools.img "$kernel"
    chroot "$root" apt-get "$@" --quiet=2 update
    chroot "$root" apt-get "$@" --quiet=2 --yes --no-install-recommends install dracut-core
    chroot "$root" dracut --no-hostonly --force --kver "$kernel" /tmp/dracut.img
} >&2
cd "$root/tmp"
tar --create initramfs-tools.img dracut.img
