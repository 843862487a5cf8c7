//! The crash model of the boot partition, and what the loader makes of it after every cut.

use std::collections::BTreeMap;

use super::*;
use crate::ENTRIES_KIND_TEXT;
use crate::grub::{self, Environment};
use crate::loader_conf::SECTOR;
use crate::partition::BootPartition;
use bedplate_model::record::{EtcMode, OtherFields};
use sha2::Digest as _;
use std::io;

/// A boot partition in memory that remembers each state a power cut could leave.
#[derive(Clone, Default)]
struct Recording {
    files: BTreeMap<String, Vec<u8>>,
    cuts: Vec<BTreeMap<String, Vec<u8>>>,
}

impl Recording {
    fn cut(&mut self) {
        self.cuts.push(self.files.clone());
    }

    fn begin(&mut self) {
        self.cuts = vec![self.files.clone()];
    }
}

impl BootPartition for Recording {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.files.get(path).cloned())
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let below = format!("{directory}/");
        let names = self
            .files
            .keys()
            .filter_map(|path| path.strip_prefix(&below));
        Ok(names.map(str::to_owned).collect())
    }

    fn write(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        let temporary = format!("{path}.new");
        for length in [0, contents.len() / 2, contents.len()] {
            self.files
                .insert(temporary.clone(), contents[..length].to_vec());
            self.cut();
        }
        // FAT renames by writing one name and clearing the other, in either order; the name may be there
        // before the file's length is.
        let whole = self.files.remove(&temporary).unwrap();
        self.files.remove(path);
        self.cut();
        self.files.insert(path.to_owned(), Vec::new());
        self.cut();
        self.files.insert(path.to_owned(), whole.clone());
        self.files.insert(temporary.clone(), whole);
        self.cut();
        self.files.remove(&temporary);
        self.cut();
        Ok(())
    }

    fn overwrite_sector(&mut self, path: &str, contents: &[u8; SECTOR]) -> io::Result<()> {
        assert!(
            self.files.get(path).is_none_or(|old| old.len() == SECTOR),
            "a sector is overwritten by a sector"
        );
        self.files.insert(path.to_owned(), contents.to_vec());
        self.cut();
        Ok(())
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.files.remove(path);
        self.cut();
        Ok(())
    }
}

/// Every loader: what holds, holds with each.
const LOADERS: [Loader; 2] = [Loader::SystemdBoot, Loader::Grub];

/// What the loader starts, whose files these are.
fn boot(files: &mut BTreeMap<String, Vec<u8>>) -> Option<DeploymentId> {
    if files.keys().any(|path| path.starts_with(grub::DIRECTORY)) {
        boot_grub(files)
    } else {
        boot_systemd(files)
    }
}

/// What GRUB starts by our configuration: the trial, as long as it has tries and its base is the default, each
/// counted by a write of the sector before anything is loaded; else the default.
fn boot_grub(files: &mut BTreeMap<String, Vec<u8>>) -> Option<DeploymentId> {
    assert_eq!(files[grub::CONFIG], grub::CONFIG_TEXT.as_bytes());
    let mut environment = Environment::parse(files.get(grub::ENVIRONMENT)?)?;
    let default = environment.loader.default;
    while let Some(trial) = &mut environment.trial {
        let path = grub::entry_path(&trial.name());
        if trial.base != default || trial.left == 0 || !files.contains_key(&path) {
            break;
        }
        (trial.left, trial.done) = (trial.left - 1, trial.done + 1);
        let sector = environment.to_sector();
        files.insert(grub::ENVIRONMENT.to_owned(), sector.to_vec());
        if let Some(loaded) = load_fragment(files, &path) {
            return Some(loaded);
        }
    }
    load_fragment(files, &grub::entry_path(&EntryName::proven(default)))
}

/// What a fragment loads, where all that it names is there.
fn load_fragment(files: &BTreeMap<String, Vec<u8>>, path: &str) -> Option<DeploymentId> {
    let text = std::str::from_utf8(files.get(path)?).unwrap();
    let quoted = |start: &str| -> Vec<String> {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(start));
        let words = line.unwrap_or_default().split('\'').skip(1).step_by(2);
        words.map(str::to_owned).collect()
    };
    let (linux, initrd) = (quoted("if linux "), quoted("if initrd "));
    for path in [&linux[0], &initrd[0]] {
        check_whole(path, files.get(path.trim_start_matches('/'))?);
    }
    let key = format!("{}=", cmdline::DEPLOYMENT);
    linux
        .iter()
        .find_map(|word| word.strip_prefix(&key))?
        .parse()
        .ok()
}

/// Asserts that a kernel or initramfs is what its name says.
fn check_whole(path: &str, bytes: &[u8]) {
    let hex = bedplate_model::digest::hex(&sha2::Sha256::digest(bytes));
    assert!(path.contains(&hex[..32]), "{path} is not whole");
}

/// What systemd-boot starts: entries whose tries are used up stand last, the others by falling version;
/// the first that the default's pattern matches, else the first. It counts the try by a rename.
fn boot_systemd(files: &mut BTreeMap<String, Vec<u8>>) -> Option<DeploymentId> {
    let mut entries: Vec<(EntryName, BootEntry)> = files
        .iter()
        .filter_map(|(path, bytes)| {
            let name = path.strip_prefix("loader/entries/")?.parse().ok()?;
            let text = std::str::from_utf8(bytes).ok()?;
            let entry = BootEntry::parse(text).ok()?;
            entry.linux.is_some().then_some((name, entry)) // it passes over those that name no kernel
        })
        .collect();
    entries.sort_by_key(|(name, entry)| {
        let version: u64 = entry.version.as_deref().unwrap_or("0").parse().unwrap();
        (!name.is_hopeful(), std::cmp::Reverse(version))
    });
    let prefix = files.get(crate::LOADER_CONF).and_then(|bytes| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("default "));
        Some(line?.strip_suffix('*')?.to_owned())
    });
    let matches = |name: &EntryName| {
        prefix
            .as_ref()
            .is_some_and(|prefix| name.to_string().starts_with(prefix))
    };
    let chosen = entries
        .iter()
        .find(|(name, _)| matches(name))
        .or(entries.first())?;
    let (name, entry) = chosen.clone();
    for path in entry.linux.iter().chain(&entry.initrd) {
        check_whole(path, files.get(path.trim_start_matches('/'))?);
    }
    if let Some(tries) = name.tries {
        let path = |name: &EntryName| Loader::SystemdBoot.entry_path(name);
        let bytes = files.remove(&path(&name)).unwrap();
        let after = EntryName {
            tries: Some(tries.tried()),
            ..name
        };
        files.insert(path(&after), bytes);
    }
    let line = Cmdline::parse(&entry.command_line());
    line.value(cmdline::DEPLOYMENT)?.parse().ok()
}

fn id(number: u8) -> DeploymentId {
    DeploymentId([number; 4])
}

fn content(number: u8, kind: &str) -> Vec<u8> {
    format!("{kind} {number} {}", "x".repeat(100)).into_bytes()
}

fn contents(digest: &Sha256) -> io::Result<Vec<u8>> {
    (0..9)
        .flat_map(|number| ["kernel", "initramfs"].map(|kind| content(number, kind)))
        .find(|bytes| sha2::Sha256::digest(bytes)[..] == digest.0)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn deployment(number: u8, state: State, base: Option<u8>) -> Deployment {
    let digest = |kind| Sha256(sha2::Sha256::digest(content(number, kind)).into());
    Deployment {
        id: id(number),
        sequence: u64::from(number) * 9,
        image: "example.org/os:stable".parse().unwrap(),
        root: format!("exact-1/v1-sha256-12:{}", "1".repeat(64))
            .parse()
            .unwrap(),
        manifest: None,
        version: None,
        title: "An OS".into(),
        kernel: "6.1.0".into(),
        vmlinuz: digest("kernel"),
        initramfs: digest("initramfs"),
        kargs: vec!["quiet".into()],
        state,
        reason: None,
        base: base.map(id),
        failure: None,
        failed_units: Vec::new(),
        created: 0,
        signature: None,
        local_kargs: None,
        pinned: false,
        etc: EtcMode::Merged,
        other: OtherFields::new(),
    }
}

fn record(default: u8, deployments: Vec<Deployment>) -> Record {
    let mut record = Record::new("0-1".into(), deployments[0].clone());
    record.deployments = deployments;
    record.default = id(default);
    record
}

/// A machine with deployment 1 proven, installed by rendering.
fn installed(flavour: Loader) -> (Recording, Record) {
    let record = record(1, vec![deployment(1, State::Proven, None)]);
    let mut disk = Recording::default();
    let observed = Observed {
        flavour,
        ..observe(&disk).unwrap()
    };
    let plan = render(&record, &observed, &Settings::default()).unwrap();
    execute(&plan, &mut disk, &contents).unwrap();
    (disk, record)
}

/// Plans and executes, asserting that after every cut the loader starts `old` or `new`, `new` at the
/// end, and that the same operation carried out again from every cut ends there too.
fn changes(
    disk: &mut Recording,
    plan: &dyn Fn(&Observed) -> Plan,
    old: DeploymentId,
    new: DeploymentId,
) {
    disk.begin();
    let steps = plan(&observe(disk).unwrap());
    execute(&steps, disk, &contents).unwrap();
    for (number, cut) in disk.cuts.clone().into_iter().enumerate() {
        let booted = boot(&mut cut.clone());
        assert!(
            booted == Some(old) || booted == Some(new),
            "cut {number} of\n{steps}boots {booted:?}"
        );
        let mut again = Recording {
            files: cut,
            cuts: Vec::new(),
        };
        let steps = plan(&observe(&again).unwrap());
        execute(&steps, &mut again, &contents).unwrap();
        assert_eq!(
            boot(&mut again.files),
            Some(new),
            "again after cut {number}"
        );
    }
    assert_eq!(boot(&mut disk.files.clone()), Some(new));
}

#[test]
fn an_installed_machine_needs_nothing_more_and_boots() {
    for flavour in LOADERS {
        let (mut disk, record) = installed(flavour);
        let plan = render(&record, &observe(&disk).unwrap(), &Settings::default()).unwrap();
        assert!(plan.is_empty(), "{plan}");
        let fixed = [ENTRIES_KIND_TEXT, grub::CONFIG_TEXT];
        let fixed = fixed[usize::from(flavour == Loader::Grub)];
        assert_eq!(disk.files[flavour.fixed_path()], fixed.as_bytes());
        for _ in 0..9 {
            assert_eq!(boot(&mut disk.files), Some(id(1)), "nothing is counted");
        }
    }
}

#[test]
fn a_life_of_upgrades_boots_old_or_new_at_every_cut() {
    for flavour in LOADERS {
        let (mut disk, _) = installed(flavour);
        let settings = Settings::default();
        // 2 is tried and proven.
        let mut now = record(
            2,
            vec![
                deployment(2, State::Trial, Some(1)),
                deployment(1, State::Proven, None),
            ],
        );
        let plan = |seen: &Observed| plan_try(&now, seen, id(2), &settings).unwrap();
        changes(&mut disk, &plan, id(1), id(2));
        assert_eq!(boot(&mut disk.files), Some(id(2)));
        assert_eq!(observe(&disk).unwrap().tries_left(id(2)), Some(2));
        now.deployment_mut(id(2)).unwrap().state = State::Proven;
        let plan = |seen: &Observed| plan_prove(&now, seen, id(2), &settings).unwrap();
        changes(&mut disk, &plan, id(1), id(2));
        for _ in 0..9 {
            assert_eq!(boot(&mut disk.files), Some(id(2)), "nothing is counted now");
        }
        // Back to 1, and 3 is tried from there: 2 must never boot by itself.
        now.default = id(1);
        let plan = |seen: &Observed| plan_select(&now, seen, id(1), &settings).unwrap();
        changes(&mut disk, &plan, id(2), id(1));
        now.deployments
            .insert(0, deployment(3, State::Trial, Some(1)));
        let plan = |seen: &Observed| plan_try(&now, seen, id(3), &settings).unwrap();
        changes(&mut disk, &plan, id(1), id(3));
        for expected in [3, 3, 3, 1, 1] {
            assert_eq!(boot(&mut disk.files), Some(id(expected)), "falls back to 1");
        }
        // 3 is bad, and goes with its files.
        now.deployment_mut(id(3)).unwrap().state = State::Bad;
        let plan = |seen: &Observed| plan_clean(&now, seen);
        changes(&mut disk, &plan, id(1), id(1));
        let seen = observe(&disk).unwrap();
        assert_eq!((seen.entries.len(), seen.files.len()), (2, 4));
        assert!(plan_clean(&now, &seen).is_empty());
    }
}

#[test]
fn a_trial_on_its_last_try_is_proven_without_losing_it() {
    for flavour in LOADERS {
        let (mut disk, _) = installed(flavour);
        let settings = Settings::default();
        let mut now = record(
            2,
            vec![
                deployment(2, State::Trial, Some(1)),
                deployment(1, State::Proven, None),
            ],
        );
        let plan = plan_try(&now, &observe(&disk).unwrap(), id(2), &settings).unwrap();
        execute(&plan, &mut disk, &contents).unwrap();
        for _ in 0..3 {
            assert_eq!(boot(&mut disk.files), Some(id(2)));
        }
        now.deployment_mut(id(2)).unwrap().state = State::Proven;
        let plan = |seen: &Observed| plan_prove(&now, seen, id(2), &settings).unwrap();
        changes(&mut disk, &plan, id(1), id(2));
    }
}

#[test]
fn a_newer_trial_supersedes_an_older_one_without_resetting_tries() {
    for flavour in LOADERS {
        let (mut disk, _) = installed(flavour);
        let settings = Settings::default();
        let now = record(
            1,
            vec![
                deployment(3, State::Trial, Some(1)),
                deployment(2, State::Trial, Some(1)),
                deployment(1, State::Proven, None),
            ],
        );
        let plan = plan_try(&now, &observe(&disk).unwrap(), id(2), &settings).unwrap();
        execute(&plan, &mut disk, &contents).unwrap();
        let plan = |seen: &Observed| plan_try(&now, seen, id(3), &settings).unwrap();
        changes(&mut disk, &plan, id(2), id(3));
        assert_eq!(boot(&mut disk.files), Some(id(3)));
        let plan = plan_try(&now, &observe(&disk).unwrap(), id(3), &settings).unwrap();
        execute(&plan, &mut disk, &contents).unwrap();
        assert_eq!(observe(&disk).unwrap().tries_left(id(3)), Some(2));
        // Giving the trial up boots the base at once.
        let plan = |seen: &Observed| plan_select(&now, seen, id(1), &settings).unwrap();
        changes(&mut disk, &plan, id(3), id(1));
    }
}

#[test]
fn rendering_does_not_bring_a_lost_trial_back_and_mends_what_is_reliable() {
    for flavour in LOADERS {
        let (mut disk, _) = installed(flavour);
        let now = record(
            2,
            vec![
                deployment(2, State::Trial, Some(1)),
                deployment(1, State::Proven, None),
            ],
        );
        disk.files.retain(|path, _| path == grub::CONFIG);
        let plan = render(&now, &observe(&disk).unwrap(), &Settings::default()).unwrap();
        execute(&plan, &mut disk, &contents).unwrap();
        assert_eq!(boot(&mut disk.files), Some(id(1)));
        assert_eq!(observe(&disk).unwrap().entries.len(), 1);
    }
}

#[test]
fn a_wrong_content_never_gets_a_name() {
    let (mut disk, record) = installed(Loader::SystemdBoot);
    disk.files.clear();
    let plan = render(&record, &observe(&disk).unwrap(), &Settings::default()).unwrap();
    let error = execute(&plan, &mut disk, &|_| Ok(b"other".to_vec())).unwrap_err();
    assert!(matches!(error, ExecuteError::Content { .. }), "{error}");
    assert!(observe(&disk).unwrap().files.is_empty());
}

#[test]
fn a_plan_refuses_what_would_not_boot() {
    let mut now = record(
        1,
        vec![
            deployment(3, State::Trial, Some(2)),
            deployment(2, State::Bad, None),
            deployment(1, State::Proven, None),
        ],
    );
    let seen = Observed::default();
    let settings = Settings::default();
    let refused = |now: &Record, number| plan_try(now, &seen, id(number), &settings).unwrap_err();
    assert_eq!(refused(&now, 9), PlanError::Unknown(id(9)));
    assert_eq!(refused(&now, 3), PlanError::NotProven(id(2)));
    assert_eq!(refused(&now, 2), PlanError::NoBase(id(2)));
    now.deployment_mut(id(1)).unwrap().kargs = vec!["a b".into()];
    let error = plan_select(&now, &seen, id(1), &settings).unwrap_err();
    assert!(matches!(error, PlanError::Argument { .. }), "{error}");
}

#[test]
fn an_image_cannot_name_another_root() {
    let (_, mut record) = installed(Loader::SystemdBoot);
    let kargs = ["bedplate.root=?v1-sha256-12:00", "root=/dev/sdz", "panic=5"];
    record.deployments[0].kargs = kargs.map(str::to_owned).to_vec();
    let line = command_line(&record, &record.deployments[0], &Settings::default()).unwrap();
    let told = cmdline::BootArguments::of(&line).unwrap();
    assert_eq!(told.root, cmdline::DeviceName::Uuid("0-1".into()));
    assert!(!told.image.unsealed_allowed);
    assert_eq!(line.value("panic").as_deref(), Some("5"));
}

#[test]
fn a_trial_whose_files_grub_cannot_load_uses_its_tries_up_and_the_base_boots_at_once() {
    let (mut disk, _) = installed(Loader::Grub);
    let now = record(
        2,
        vec![
            deployment(2, State::Trial, Some(1)),
            deployment(1, State::Proven, None),
        ],
    );
    let plan = plan_try(&now, &observe(&disk).unwrap(), id(2), &Settings::default()).unwrap();
    execute(&plan, &mut disk, &contents).unwrap();
    let kernel = format!("{FILES}/{}", kernel_name(&now.deployments[0]));
    assert!(disk.files.remove(&kernel).is_some());
    assert_eq!(boot(&mut disk.files), Some(id(1)));
    assert_eq!(observe(&disk).unwrap().tries_left(id(2)), Some(0));
}

#[test]
fn a_plan_for_grub_names_its_files() {
    let (disk, _) = installed(Loader::Grub);
    let now = record(
        2,
        vec![
            deployment(2, State::Trial, Some(1)),
            deployment(1, State::Proven, None),
        ],
    );
    let plan = plan_try(&now, &observe(&disk).unwrap(), id(2), &Settings::default()).unwrap();
    let steps: Vec<String> = plan.steps().skip(2).collect();
    assert_eq!(
        steps,
        [
            "write bedplate/trials/bedplate-01010101-02020202.cfg",
            "set bedplate/grubenv to boot 01010101",
        ]
    );
}

#[test]
fn what_grub_would_change_is_refused_before_anything_is_written() {
    let (disk, mut now) = installed(Loader::Grub);
    now.deployments[0].kargs = vec![r"a=\x20".into()];
    let seen = Observed {
        entries: Vec::new(),
        ..observe(&disk).unwrap()
    };
    let error = render(&now, &seen, &Settings::default()).unwrap_err();
    assert!(matches!(error, PlanError::Unspeakable { .. }), "{error}");
}
