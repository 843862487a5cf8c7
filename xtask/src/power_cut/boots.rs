//! Some cuts, booted for real.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::powercut::cuts::{Cut, Random};
use testkit::qemu::{Boot, Machine, MachineOptions};

use super::left::{Depth, Left};
use super::life::{Expected, Versions};
use super::plan::{self, Job};
use super::wreck;
use crate::images::Images;

/// How long a machine that is up may take until what runs is proven.
const PROVING: Duration = Duration::from_secs(150);

/// Chooses `count` of the cuts, as many in each phase.
pub(super) fn choose(jobs: &[(Cut, Job)], count: usize, seed: u64) -> Vec<(Cut, Job)> {
    let mut random = Random::new(seed ^ 0x0b00_7000);
    let mut phases: Vec<Vec<(Cut, Job)>> = Vec::new();
    for job in jobs {
        match phases.last_mut() {
            Some(last) if last[0].1.expected.phase == job.1.expected.phase => last.push(*job),
            _ => phases.push(vec![*job]),
        }
    }
    let mut chosen = Vec::new();
    while chosen.len() < count.min(jobs.len()) {
        // The first boot and ordinary life have less to tell than what is changed later.
        phases.retain(|phase| !phase.is_empty());
        for phase in phases.iter_mut().rev() {
            if chosen.len() < count && !phase.is_empty() {
                chosen.push(phase.swap_remove(random.below(phase.len())));
            }
        }
    }
    plan::put_in_order(&mut chosen);
    chosen
}

/// Boots a wreck, waits until what runs is proven, and examines the disk; says what happened.
pub(super) fn boot(
    disk: &Path,
    place: &Path,
    expected: Expected,
    versions: &Versions,
) -> Result<String> {
    let images = Images::open_or_make()?;
    let foretold = place.join("foretold.img");
    wreck::clone(disk, &foretold)?;
    let foretold = Left::power_on(&foretold, place).context("powering on")?;
    expected.check(&foretold, versions)?;
    let foretold = foretold.booted.deployment;

    let variables = place.join("variables.fd");
    if variables.exists() {
        std::fs::remove_file(&variables).context("removing the firmware's variables")?;
    }
    let mut machine = Machine::start(&MachineOptions {
        boot: Boot::Uefi { variables },
        disk: disk.to_owned(),
        carried: None,
        watchdog: false,
        serial_log: place.join("serial.log"),
        memory: 1024,
        processors: 2,
        registry_port: None,
        key: images.key.clone(),
    })?;
    let told = wait_until_proven(&mut machine, &foretold.to_string());
    if told.is_err() {
        eprintln!("{}", machine.serial_tail(40));
    }
    let told = told?;
    drop(machine);
    let left = Left::power_on(disk, place).context("powering on after the boot")?;
    left.check_whole(Depth::Contents)
        .context("what boots after the boot is not whole")?;
    Ok(told)
}

fn wait_until_proven(machine: &mut Machine, foretold: &str) -> Result<String> {
    let took = machine.wait_until_up()?;
    let started = Instant::now();
    loop {
        let status = machine.check("bedplate status --json")?;
        let status: Value = serde_json::from_str(&status).context("reading the status")?;
        let booted = status["deployments"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["booted"] == true))
            .with_context(|| format!("the status knows of no booted deployment: {status:#}"))?;
        ensure!(
            booted["id"] == foretold,
            "{foretold} was expected to boot, and {} did",
            booted["id"]
        );
        if booted["state"] == "proven" {
            break;
        }
        ensure!(
            started.elapsed() < PROVING,
            "it is not proven: {status:#}\n{}",
            machine
                .run("systemctl list-jobs; journalctl -b -u 'bedplate-*'")?
                .stdout
        );
        thread::sleep(Duration::from_millis(500));
    }
    // Settled, and the log of what happened written.
    machine.check("systemctl start bedplate-prove && sync")?;
    Ok(format!(
        "{foretold} boots, up after {:.0} s, proven {:.0} s later",
        took.as_secs_f32(),
        started.elapsed().as_secs_f32()
    ))
}
