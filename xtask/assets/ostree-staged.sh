# Stages a version with ostree and finalizes it, as the machine would that booted the first deployment.
#
# `ostree admin deploy --stage` wants to be in a booted deployment. It is in one here: its root is the
# deployment, in namespaces of mounts and processes of its own; programs and libraries are the host's, and
# systemctl, which would start the service that finalizes, does nothing.
#
# staged.sh SYSROOT OS REF NOTES
set -eu
sysroot=$1 os=$2 ref=$3 notes=$4
for root in "$sysroot/ostree/deploy/$os/deploy/"*.0; do break; done
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$sysroot" "$root/sysroot"
mount --bind "$sysroot/boot" "$root/boot"
mount --bind /usr "$root/usr"
mount --bind /bin/true "$root/usr/bin/systemctl"
mount -t tmpfs none "$root/run"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mkdir "$root/run/lock"
touch "$root/run/ostree-booted"
timed() {
    sync
    /usr/bin/time --quiet --format='%e %U %S %M' --output="$notes/$1" chroot "$root" ostree admin "$2" $3
}
timed stage deploy "--stage --os=$os $ref" >/dev/null
test -e "$root/run/ostree/staged-deployment"
timed finalize finalize-staged '' >/dev/null
