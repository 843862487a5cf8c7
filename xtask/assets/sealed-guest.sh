#!/bin/sh
# The first process of a guest: commits /slice to both kinds of sealed store in turn, and tells the serial
# line what each run took: wall seconds, user seconds, system seconds, peak kilobytes.
mount -t devtmpfs devices /dev
exec >/dev/ttyS0 2>&1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin

end() {
    echo "sealed: $*"
    sync
    echo o >/proc/sysrq-trigger
    sleep 60
}

timed() {
    who=$1
    shift
    sync
    /usr/bin/time --quiet --format='%e %U %S %M' --output=/tmp/took "$@" >/tmp/said 2>&1 ||
        end "failed: $who: $(cat /tmp/said)"
    echo "sealed: $who $(cat /tmp/took)"
}

# Whether the kernel has sealed the largest file below a directory.
is_sealed() {
    largest=$(find "$1" -type f -printf '%s %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2)
    lsattr "$largest" | cut -d ' ' -f 1 | grep -q V || end "failed: $largest is not sealed"
}

# A guest that says nothing for long is taken for stuck.
while sleep 20; do echo "sealed: at it"; done &

find /slice -type f -exec cksum {} + >/dev/null
for run in 1 2 3; do
    timed ours /bedplate --quiet --store "/ours-$run" commit /slice localhost/bench:v1
    repository=/theirs-$run
    ostree init --repo="$repository" --mode=bare
    # What sealing is called up to 2022, and what since 2023; each release ignores the other.
    ostree config --repo="$repository" set ex-fsverity.required true
    ostree config --repo="$repository" set ex-integrity.fsverity yes
    timed theirs ostree commit --repo="$repository" --branch=v1 --subject=bench --tree=dir=/slice
    is_sealed "/ours-$run/objects"
    is_sealed "$repository/objects"
    echo "sealed: run $run is over"
done
end done
