//! What machines go through.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::qemu::REGISTRY;

use super::super::{FOLLOWED, REPOSITORY, text};
use super::guest::Guest;
use super::workshop::SETTINGS;
use crate::{images, run};

/// One thing that a machine goes through.
pub(super) struct Course {
    pub(super) name: &'static str,
    /// What happens, for people.
    pub(super) about: &'static str,
    pub(super) extent: Extent,
    pub(super) play: fn(&mut Guest<'_>) -> Result<()>,
}

/// When a course is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// In every test run.
    Test,
    /// In the campaign alone.
    Campaign,
}

/// Every course, the longest first, so that the last ones end together.
pub(super) const COURSES: &[Course] = &[
    Course {
        name: "etc",
        about: "an /etc that is an overlay, that is transient, that is read-only",
        extent: Extent::Campaign,
        play: etc,
    },
    Course {
        name: "release",
        about: "to the next release of Debian and back; the loader follows, one copy at a time",
        extent: Extent::Test,
        play: release,
    },
    Course {
        name: "automatic",
        about: "an upgrade by itself: window, inhibitor, hook, restart",
        extent: Extent::Test,
        play: automatic,
    },
    Course {
        name: "arguments",
        about: "kernel arguments, two deployments of one image, pins",
        extent: Extent::Test,
        play: arguments,
    },
    Course {
        name: "usr",
        about: "a /usr that can be written until the reboot, on both kernels",
        extent: Extent::Test,
        play: usr,
    },
    Course {
        name: "power",
        about: "the power goes while an upgrade is finalized",
        extent: Extent::Test,
        play: power,
    },
    Course {
        name: "damage",
        about: "an object altered on the disk: refused, named, mended",
        extent: Extent::Test,
        play: damage,
    },
    Course {
        name: "carried",
        about: "an upgrade from a disk that somebody carried there: an OCI layout that skopeo made",
        extent: Extent::Test,
        play: carried,
    },
    Course {
        name: "hang",
        about: "a version that hangs: the watchdog restarts the machine until the version before boots",
        extent: Extent::Campaign,
        play: hang,
    },
    Course {
        name: "check",
        about: "a file system that is checked, and one that has errors",
        extent: Extent::Campaign,
        play: check,
    },
];

/// Kernel arguments, in deployments of one image, over an upgrade; and a pin.
fn arguments(guest: &mut Guest<'_>) -> Result<()> {
    let (first, second) = (guest.first(), guest.second());
    guest.check("bedplate kargs --append lathe=oiled")?;
    guest.reboot()?;
    guest.expect(first)?;
    guest.check("grep --quiet lathe=oiled /proc/cmdline")?;
    let status = guest.status()?;
    let roots: Vec<&Value> = each(&status, "root_digest");
    ensure!(
        roots.len() == 2 && roots[0] == roots[1],
        "two deployments of one image were expected: {status:#}"
    );
    guest.check("bedplate rollback")?;
    guest.reboot()?;
    guest.expect(first)?;
    guest.refused("grep lathe /proc/cmdline")?;
    guest.check("bedplate rollback && bedplate pin 1")?;
    guest.reboot()?;
    guest.check("grep --quiet lathe=oiled /proc/cmdline")?;
    guest.upgrade(second)?;
    guest.check("grep --quiet lathe=oiled /proc/cmdline")?;
    let status = guest.status()?;
    ensure!(
        each(&status, "pinned")
            .iter()
            .filter(|pinned| **pinned == &Value::Bool(true))
            .count()
            == 1
            && each(&status, "id").len() == 3,
        "three deployments, one of them pinned, were expected: {status:#}"
    );
    let refused = guest.refused("bedplate undeploy 2")?;
    ensure!(refused.contains("is pinned"), "{refused}");
    guest.check("bedplate unpin 2 && bedplate kargs --delete lathe")?;
    guest.reboot()?;
    guest.expect(second)?;
    guest.refused("grep lathe /proc/cmdline")?;
    Ok(())
}

/// `usr-overlay` where the image lies on a loop device (6.1) and where it is mounted from its file (6.12).
fn usr(guest: &mut Guest<'_>) -> Result<()> {
    for version in [guest.first(), guest.second()] {
        if version.root != guest.first().root {
            guest.upgrade(version)?;
        }
        guest.refused("touch /usr/bin/mine")?;
        guest.check("bedplate usr-overlay")?;
        let tried = "printf '#!/bin/sh\\necho it runs\\n' >/usr/bin/mine && chmod +x /usr/bin/mine && mine \
                     && echo gone >/usr/share/base-passwd/passwd.master && rm /usr/bin/yes && ! test -e /usr/bin/yes \
                     && chmod 700 /usr/bin/sort && printf 'b\\na\\n' | sort >/dev/null \
                     && ls /usr | tr '\\n' ' '";
        let said = guest.check(tried)?;
        ensure!(said.starts_with("it runs\n"), "it said {said:?}");
        ensure!(
            !said
                .split_whitespace()
                .any(|name| name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit())),
            "the store's directories are seen in /usr: {said}"
        );
        let again = guest.refused("bedplate usr-overlay")?;
        ensure!(again.contains("can be written already"), "{again}");
        ensure!(
            guest.status()?["usr_writable"] == true,
            "the status does not say it"
        );
        guest.reboot()?;
        guest.expect(version)?;
        guest.check("test -e /usr/bin/yes && ! test -e /usr/bin/mine && yes | head -n 1")?;
        guest.check("sleep 1; systemctl start systemd-tmpfiles-setup; ! test -e /var/tmp/bedplate-usr-overlay")?;
        ensure!(
            guest.status()?["usr_writable"] == false,
            "the status says that /usr is writable"
        );
    }
    Ok(())
}

/// Modes of /etc, on both kernels: merged → overlay → overlay → transient → read-only → merged.
fn etc(guest: &mut Guest<'_>) -> Result<()> {
    let with = |mode: &str| format!("{SETTINGS}[etc]\nmode = \"{mode}\"\n");
    let settings = "usr/lib/bedplate/machine.toml";
    let (first, second) = (guest.first(), guest.second());
    let old_overlay = guest.variant(11, first, &[(settings, &with("overlay"))])?;
    let new_overlay = guest.variant(12, second, &[(settings, &with("overlay"))])?;
    let transient = guest.variant(13, second, &[(settings, &with("transient"))])?;
    let read_only = guest.variant(14, second, &[(settings, &with("read-only"))])?;

    guest.check(
        "echo 'Mind the lathe.' >/etc/motd && useradd --uid 1500 anna && rm /etc/debian_version",
    )?;
    guest.upgrade(&old_overlay)?;
    let kept = "grep --quiet lathe /etc/motd && id anna && ! test -e /etc/debian_version && test -e /etc/mine";
    guest.check("touch /etc/mine && rm /etc/issue && mkdir /etc/shop && echo 1 >/etc/shop/tool")?;
    guest.check("findmnt --noheadings --output FSTYPE /etc | grep --quiet overlay")?;
    guest.reboot()?;
    guest.expect(&old_overlay)?;
    guest.check(&format!(
        "{kept} && ! test -e /etc/issue && grep --quiet 1 /etc/shop/tool"
    ))?;
    guest.upgrade(&new_overlay)?;
    guest.check(&format!(
        "{kept} && ! test -e /etc/issue && grep --quiet 1 /etc/shop/tool && htop --version"
    ))?;
    // The layer has what was changed, and not a whole /etc.
    let entries = guest.check("find /sysroot/bedplate/deployments/*/etc-layer -type f | wc -l")?;
    let entries: u32 = entries.trim().parse().context("counting files")?;
    ensure!(entries < 60, "{entries} files are in the layers");

    guest.upgrade(&transient)?;
    let id = guest.check("cat /etc/machine-id")?;
    ensure!(id.trim().len() == 32, "the machine's id is {id:?}");
    guest.check("! test -e /etc/mine && test -e /etc/debian_version && touch /etc/mine")?;
    guest.reboot()?;
    guest.expect(&transient)?;
    guest.check("! test -e /etc/mine")?;
    ensure!(
        guest.check("cat /etc/machine-id")? == id,
        "the machine's id has changed"
    );

    guest.upgrade(&read_only)?;
    guest.refused("touch /etc/mine")?;
    ensure!(
        guest.check("cat /etc/machine-id")? == id,
        "the machine's id has changed"
    );
    ensure!(
        guest.booted()?["etc"] == "read-only",
        "the status does not say it"
    );
    guest.upgrade(second)?;
    guest.check("touch /etc/mine && test -e /etc/debian_version")?;
    Ok(())
}

/// Upgrades by itself, step by step, as its timer would ask.
fn automatic(guest: &mut Guest<'_>) -> Result<()> {
    let second = guest.second();
    let told = |guest: &mut Guest<'_>, settings: &str| {
        let text = format!("{SETTINGS}[upgrade]\nevery = \"1s\"\njitter = \"0s\"\n{settings}");
        guest.check(&format!(
            "cat >/etc/bedplate/machine.toml <<'END'\n{text}END\n"
        ))
    };
    let ask = |guest: &mut Guest<'_>, kind: &str| -> Result<Value> {
        guest.check("sleep 1; systemctl start bedplate-upgrade")?;
        let status = guest.status()?;
        let waits = &status["waits"];
        ensure!(
            waits["kind"].as_str().unwrap_or("nothing") == kind,
            "it should wait for {kind}: {waits:#}\n{}",
            guest.gate()?
        );
        Ok(waits.clone())
    };
    guest.check("systemctl is-active bedplate-upgrade.timer")?;
    guest.publish(second)?;
    guest.check("systemctl start bedplate-upgrade")?;
    let status = guest.status()?;
    ensure!(
        status["staged"].is_null() && status["waits"].is_null(),
        "it did something untold: {status:#}"
    );

    told(guest, "automatic = \"check\"\n")?;
    ask(guest, "word")?;
    let why = guest.refused("bedplate why")?;
    ensure!(why.contains("told only to look"), "{why}");
    // A window of another day: the day after tomorrow.
    let today: usize = guest
        .check("date +%u")?
        .trim()
        .parse()
        .context("asking for the day")?;
    let day = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"][(today + 1) % 7];
    told(
        guest,
        &format!("automatic = \"apply\"\nwindows = [\"{day} 10:00-11:00\"]\n"),
    )?;
    ask(guest, "window")?;
    ensure!(!guest.status()?["staged"].is_null(), "nothing was staged");
    let said = guest.check("bedplate status")?;
    ensure!(said.contains("waits for the next window"), "{said}");
    told(guest, "automatic = \"apply\"\n")?;
    guest.check(
        "systemd-run --quiet --unit=lathe systemd-inhibit --what=shutdown --mode=block --who=lathe \
         --why=turning sleep 600; until systemd-inhibit --list | grep --quiet turning; do sleep 0.2; done",
    )?;
    let waits = ask(guest, "inhibited")?;
    ensure!(waits["by"]["who"] == "lathe", "{waits:#}");
    guest.check(
        "systemctl stop lathe; mkdir -p /etc/bedplate/pre-reboot.d; \
         printf 'test -e /run/drained || { echo sessions are left; exit 1; }\\n' \
         >/etc/bedplate/pre-reboot.d/10-drain.sh",
    )?;
    let waits = ask(guest, "hook")?;
    ensure!(waits["output"] == "sessions are left", "{waits:#}");
    guest.check("touch /run/drained")?;
    // The machine goes down meanwhile.
    guest.run("systemctl start --no-block bedplate-upgrade")?;
    guest.wait_for(second)?;
    let events = guest.check("bedplate events")?;
    ensure!(events.contains("automatic upgrade"), "{events}");
    Ok(())
}

/// The power goes at several moments of a finalize, with all that the guest had not yet written.
fn power(guest: &mut Guest<'_>) -> Result<()> {
    let (first, second) = (guest.first(), guest.second());
    guest.publish(second)?;
    guest.check("bedplate upgrade")?;
    guest.check("sync")?;
    for tenths in ["0.1", "0.6", "1.5", "4"] {
        // The answer is lost with the machine.
        guest.run(&format!(
            "(bedplate internal finalize >/dev/null 2>&1 &) ; sleep {tenths}; echo b >/proc/sysrq-trigger"
        ))?;
        guest.machine().wait_until_up()?;
        let booted = text(&guest.booted()?, "root_digest")?;
        if booted == second.root {
            break;
        }
        ensure!(booted == first.root, "{booted} runs");
        guest.expect(first)?;
        let status = guest.status()?;
        ensure!(
            !status["staged"].is_null(),
            "what was staged is lost: {status:#}"
        );
        guest.check("bedplate fsck --quick")?;
    }
    if text(&guest.booted()?, "root_digest")? == first.root {
        guest.reboot()?;
    }
    guest.expect(second)?;
    guest.check("bedplate fsck")?;
    Ok(())
}

/// One object is altered on the disk behind everybody's back.
fn damage(guest: &mut Guest<'_>) -> Result<()> {
    let second = guest.second();
    guest.upgrade(second)?;
    let program = "/usr/bin/jq";
    let listed = guest.check(&format!(
        "bedplate ls --json {REGISTRY}/{REPOSITORY}:{FOLLOWED} {program}"
    ))?;
    let listed: Value = serde_json::from_str(&listed).context("reading what `ls` printed")?;
    let hex = &text(&listed[0], "object")?;
    let path = format!("/bedplate/store/objects/{}/{}", &hex[..2], &hex[2..]);
    guest.check(&format!("{program} --version && test -e /sysroot{path}"))?;
    guest.off_and_on(|disk| {
        let start = super::super::root_partition(disk)?;
        let target = format!("{}?offset={start}", disk.display());
        let command = format!("zap_block -f {path} -p 90 0");
        let said = run::output(Command::new("debugfs").args(["-w", "-R", &command, &target]))?;
        ensure!(!said.contains("not found"), "debugfs: {said}");
        Ok(())
    })?;
    let refused = guest.refused(&format!("cat {program} >/dev/null"))?;
    ensure!(refused.contains("Input/output error"), "{refused}");
    let found = guest.run("bedplate fsck")?;
    ensure!(
        found.code == 5,
        "fsck ended with {}: {}{}",
        found.code,
        found.stdout,
        found.stderr
    );
    let found = format!("{}{}", found.stdout, found.stderr);
    ensure!(
        found.contains(hex.as_str()) && found.contains("usr/bin/jq"),
        "{found}"
    );
    guest.check("bedplate fsck --repair")?;
    guest.reboot()?;
    guest.expect(second)?;
    guest.check(&format!("{program} --version && bedplate fsck"))?;
    Ok(())
}

/// Debian 12 → 13 → 12: /var, the changed /etc and a user survive, and the loader follows and stays.
fn release(guest: &mut Guest<'_>) -> Result<()> {
    let first = guest.first();
    let tree = images::next_release(guest.key())?;
    let next = guest.build(13, &tree)?;
    guest.publish_as(&next, "next")?;
    guest.check(
        "echo 'Mind the lathe.' >/etc/motd && useradd --create-home --uid 1500 anna \
         && echo oiled >/var/lib/logbook && echo list >/home/anna/list && chown anna /home/anna/list",
    )?;
    let survived = "grep --quiet lathe /etc/motd && test \"$(id --user anna)\" = 1500 \
                    && grep --quiet oiled /var/lib/logbook && test \"$(stat --format=%U /home/anna/list)\" = anna";
    guest.check(&format!("bedplate switch {REGISTRY}/{REPOSITORY}:next"))?;
    guest.reboot()?;
    guest.expect_with_conflicts(&next)?;
    guest.check(survived)?;
    guest.check(
        "grep --quiet trixie /etc/os-release && systemctl is-system-running --wait || true",
    )?;

    // The first copy follows once the new image is proven, the second after a boot that the first has started.
    let gate = guest.wait_for_words("the loader EFI/systemd/systemd-bootx64.efi is 257")?;
    ensure!(
        !gate.contains("BOOTX64.EFI is"),
        "both copies at once: {gate}"
    );
    guest.reboot()?;
    guest.expect_with_conflicts(&next)?;
    guest.wait_for_words("the loader EFI/BOOT/BOOTX64.EFI is 257")?;

    guest.check(&format!(
        "bedplate switch {REGISTRY}/{REPOSITORY}:{FOLLOWED}"
    ))?;
    guest.reboot()?;
    guest.expect_with_conflicts(first)?;
    guest.check(survived)?;
    guest.check("grep --quiet bookworm /etc/os-release")?;
    let gate = guest.gate()?;
    ensure!(
        !gate.contains("the loader EFI"),
        "an older loader was written: {gate}"
    );
    Ok(())
}

/// An upgrade without a network: skopeo copies the image from a registry into a layout on a disk of its own.
fn carried(guest: &mut Guest<'_>) -> Result<()> {
    let second = guest.second();
    guest.publish_as(second, "carried")?;
    let layout = guest.place().join("layout");
    let from = format!(
        "docker://127.0.0.1:{}/{REPOSITORY}:carried",
        guest.registry_port()
    );
    let to = format!("oci:{}:{FOLLOWED}", layout.display());
    run::output(Command::new("skopeo").args(["copy", "--src-tls-verify=false", &from, &to]))?;
    let disk = guest.place().join("carried.img");
    run::output(
        Command::new("mkfs.ext4")
            .args(["-q", "-d"])
            .arg(&layout)
            .arg(&disk)
            .arg("600M"),
    )?;
    guest.carry(disk)?;
    guest.check(
        "mkdir -p /run/carried && mount -o ro \"$(ls /dev/disk/by-id/nvme-*carried* | head -n 1)\" /run/carried",
    )?;
    guest.refused("bedplate upgrade --from oci:/run")?;
    let plan = guest.check("bedplate upgrade --dry-run --from oci:/run/carried")?;
    ensure!(plan.contains("chrony"), "{plan}");
    // The registry still has the first version under this name.
    guest.check("bedplate upgrade --from oci:/run/carried && umount /run/carried")?;
    guest.reboot()?;
    guest.expect(second)?;
    let image = guest.booted()?["image"].to_string();
    ensure!(image.contains(FOLLOWED), "it follows {image}");
    Ok(())
}

/// Nothing runs any more, and nothing panics: only the hardware can help.
fn hang(guest: &mut Guest<'_>) -> Result<()> {
    let second = guest.second();
    // The driver is in the newer kernel alone, so that has to be proven first.
    guest.upgrade(second)?;
    guest.watch()?;
    guest.expect(second)?;
    ensure!(
        guest.status()?["watchdog"] == true,
        "the status knows of no watchdog"
    );
    let unit = "[Unit]\nAfter=sshd.service ssh.service\n[Service]\nExecStart=/bin/sh -c \
                'sleep 5; echo -1 >/proc/sys/kernel/sched_rt_runtime_us; exec chrt --fifo 99 sh -c \"while :; do :; done\"'\n";
    let hanging = guest.variant(
        21,
        second,
        &[
            ("usr/lib/systemd/system/hang.service", unit),
            (
                "usr/lib/systemd/system/multi-user.target.d/hang.conf",
                "[Unit]\nWants=hang.service\n",
            ),
            (
                "usr/lib/bedplate/machine.toml",
                "[health]\nprobation = \"10m\"\n",
            ),
        ],
    )?;
    guest.publish(&hanging)?;
    guest.check("rm /etc/bedplate/machine.toml; printf '[health]\\ntries = 2\\n' >/etc/bedplate/machine.toml")?;
    guest.check("bedplate upgrade")?;
    guest.run("systemctl reboot")?;
    guest.wait_for(second)?;
    let status = guest.status()?;
    ensure!(
        status["bad"].as_array().is_some_and(|bad| bad.len() == 1),
        "it is not remembered: {status:#}"
    );
    Ok(())
}

/// The file system is checked when somebody asks, and when it says that it has errors.
fn check(guest: &mut Guest<'_>) -> Result<()> {
    let first = guest.first();
    guest.check("bedplate kargs --append fsck.mode=force")?;
    guest.reboot()?;
    guest.expect(first)?;
    // `quiet` keeps it from the serial line.
    let was_checked = "journalctl --boot --dmesg --no-pager | grep --quiet 'checking /dev/'";
    guest.check(was_checked)?;
    let last = "dumpe2fs -h \"$(findmnt --noheadings --output SOURCE /sysroot)\" 2>/dev/null | grep 'Last checked'";
    let checked = guest.check(last)?;
    guest.check("bedplate rollback")?;
    guest.reboot()?;
    guest.expect(first)?;
    ensure!(guest.check(last)? == checked, "it was checked without need");

    guest.off_and_on(|disk| {
        let start = super::super::root_partition(disk)?;
        let target = format!("{}?offset={start}", disk.display());
        run::output(Command::new("debugfs").args([
            "-w",
            "-R",
            "set_super_value state 3",
            &target,
        ]))?;
        Ok(())
    })?;
    guest.expect(first)?;
    guest.check(was_checked)?;
    let clean = guest.check(
        "dumpe2fs -h \"$(findmnt --noheadings --output SOURCE /sysroot)\" 2>/dev/null | grep 'Filesystem state'",
    )?;
    ensure!(
        clean.contains("clean") && !clean.contains("errors"),
        "{clean}"
    );
    Ok(())
}

/// One value of each deployment.
fn each<'s>(status: &'s Value, key: &str) -> Vec<&'s Value> {
    let all = status["deployments"].as_array();
    all.into_iter().flatten().map(|one| &one[key]).collect()
}
