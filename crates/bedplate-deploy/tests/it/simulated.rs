//! A machine in a directory, with a boot partition in memory, a loader, and a plug to pull.
//!
//! Each write spends one unit of what is left of the power; with none left it fails, and so does every
//! later one: what a machine does then, nobody sees. On a full disk one write fails, and what the machine does
//! then counts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bedplate_boot::cmdline;
use bedplate_boot::entry::EntryName;
use bedplate_boot::grub::{self, Environment, Trial};
use bedplate_boot::loader::Loader;
use bedplate_boot::loader_conf::SECTOR;
use bedplate_boot::partition::BootPartition;
use bedplate_boot::render::{self, Observed, Settings};
use bedplate_deploy::bootable::Bootable;
use bedplate_deploy::config::{HealthConfig, KeepConfig, LocalConfig};
use bedplate_deploy::events::Actor;
use bedplate_deploy::host::{BootAccess, Host, OpenBoot, Writes};
use bedplate_deploy::{Machine, record_file};
use bedplate_model::record::{Deployment, DeploymentId, EtcMode, OtherFields, Record, State};
use bedplate_model::{
    Content, FileContent, ImageName, Metadata, Node, RuleSet, Tree, TreePath, layout,
};
use bedplate_store::{RefTarget, Store};
use bedplate_sys::mount::Access;
use bedplate_sys::space::Space;
use testkit::loader;

use super::LOADER;

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// What becomes of the next writes.
#[derive(Clone, Copy, Default)]
enum Supply {
    /// They happen.
    #[default]
    Enough,
    /// So many happen, and none after them.
    Left(u32),
    /// So many happen, and for the one after them there is no room.
    Full(u32),
}

/// What writes spend.
#[derive(Clone, Default)]
pub(crate) struct Power(Rc<Cell<Supply>>);

impl Power {
    /// Leaves power for so many writes; `None` is as many as are wanted.
    pub(crate) fn leave(&self, writes: Option<u32>) {
        self.0.set(writes.map_or(Supply::Enough, Supply::Left));
    }

    /// Has the disk be full for one write, after so many others.
    pub(crate) fn fill_after(&self, writes: u32) {
        self.0.set(Supply::Full(writes));
    }

    /// Returns whether that write came.
    pub(crate) fn was_full(&self) -> bool {
        !matches!(self.0.get(), Supply::Full(_))
    }

    fn spend(&self) -> io::Result<()> {
        match self.0.get() {
            Supply::Enough => return Ok(()),
            Supply::Left(0) => return Err(io::Error::other("the power is out")),
            Supply::Full(0) => {
                self.0.set(Supply::Enough);
                return Err(io::ErrorKind::StorageFull.into());
            }
            Supply::Left(left) => self.0.set(Supply::Left(left - 1)),
            Supply::Full(left) => self.0.set(Supply::Full(left - 1)),
        }
        Ok(())
    }
}

impl Writes for Power {
    fn next(&self, _: &'static str) -> io::Result<()> {
        self.spend()
    }
}

/// A FAT in memory: a rename is several writes, and between them a name may be lost, or lead to an empty file.
#[derive(Clone)]
struct Memory {
    files: Rc<RefCell<Files>>,
    power: Power,
    room: u64,
}

impl BootAccess for Memory {
    fn open(&self, _: Access) -> io::Result<OpenBoot> {
        Ok(OpenBoot {
            partition: Box::new(self.clone()),
            space: Space {
                total: 1 << 30,
                available: self.room,
                inodes: None,
            },
        })
    }
}

impl BootPartition for Memory {
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.files.borrow().get(path).cloned())
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let below = format!("{directory}/");
        let files = self.files.borrow();
        let names = files.keys().filter_map(|path| path.strip_prefix(&below));
        Ok(names.map(str::to_owned).collect())
    }

    fn write(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        let temporary = format!("{path}.new");
        self.power.spend()?;
        let half = contents[..contents.len() / 2].to_vec();
        self.files.borrow_mut().insert(temporary.clone(), half);
        self.power.spend()?;
        self.files.borrow_mut().remove(&temporary);
        self.files.borrow_mut().remove(path);
        for left in [&[][..], contents] {
            self.power.spend()?;
            self.files
                .borrow_mut()
                .insert(path.to_owned(), left.to_vec());
        }
        Ok(())
    }

    fn overwrite_sector(&mut self, path: &str, contents: &[u8; SECTOR]) -> io::Result<()> {
        self.power.spend()?;
        self.files
            .borrow_mut()
            .insert(path.to_owned(), contents.to_vec());
        Ok(())
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.power.spend()?;
        self.files.borrow_mut().remove(path);
        Ok(())
    }
}

/// A machine that runs version 1 of an image, and has others in its store.
pub(crate) struct Simulated {
    directory: tempfile::TempDir,
    pub(crate) power: Power,
    boot: Rc<RefCell<Files>>,
    pub(crate) room: u64,
    /// What images made from now on set about their machines.
    pub(crate) config: Cell<&'static str>,
    pub(crate) store: Store,
    pub(crate) booted: DeploymentId,
}

/// The first deployment's id.
pub(crate) const FIRST: DeploymentId = DeploymentId([0x11; 4]);

/// Returns the name that upgrades are looked for under.
pub(crate) fn name() -> ImageName {
    "registry.test/os:stable".parse().unwrap()
}

impl Simulated {
    /// Makes a machine that was just installed, and boots it.
    pub(crate) fn installed() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join(layout::DEPLOYMENTS)).unwrap();
        fs::create_dir_all(directory.path().join("run")).unwrap();
        let store = Store::create(&root.join(layout::STORE)).unwrap();
        let machine = Self {
            directory,
            power: Power::default(),
            boot: Rc::default(),
            room: 1 << 30,
            config: Cell::default(),
            store,
            booted: FIRST,
        };
        let target = machine.image(1);
        let tree = machine.store.tree(&target.root).unwrap();
        let bootable = Bootable::read(&machine.store, &tree).unwrap();
        let first = Deployment {
            id: FIRST,
            sequence: 1,
            image: name(),
            root: target.root,
            manifest: target.manifest,
            version: bootable.version.clone(),
            title: bootable.title.clone(),
            kernel: bootable.release.clone(),
            vmlinuz: bootable.vmlinuz.sha256,
            initramfs: bootable.initramfs.sha256,
            kargs: [&bootable.kargs[..], &["local=1".to_owned()]].concat(),
            state: State::Trial,
            reason: None,
            base: None,
            failure: None,
            failed_units: Vec::new(),
            created: 0,
            signature: None,
            local_kargs: None,
            pinned: false,
            etc: EtcMode::Merged,
            other: OtherFields::new(),
        };
        let record = Record::new("5d4f4c2e-7f0f-4a55-8b0c-2d0a57d7f3c1".into(), first);
        fs::write(
            root.join(layout::RECORD),
            record_file::slot(&record).unwrap(),
        )
        .unwrap();
        fs::write(root.join(layout::RECORD_NEXT), record_file::EMPTY_SLOT).unwrap();
        let mut partition = machine.memory();
        let observed = Observed {
            flavour: LOADER,
            ..Observed::default()
        };
        let plan = render::render(&record, &observed, &Settings::default()).unwrap();
        let contents = |wanted: &bedplate_model::Sha256| {
            let files = [&bootable.vmlinuz, &bootable.initramfs];
            let found = files.into_iter().find(|file| file.sha256 == *wanted);
            Ok(found.unwrap().bytes.clone())
        };
        // The record's kernel is stored by the plan, since the only deployment counts as reliable.
        render::execute(&plan, &mut partition, &contents).unwrap();
        let etc = machine.etc(FIRST);
        write_etc(&etc, 1);
        let mut machine = machine;
        machine.boot();
        machine
    }

    /// Makes that machine, and proves its first deployment.
    pub(crate) fn proven() -> Self {
        let machine = Self::installed();
        machine.with(|m| m.prove(&machine.store, &[])).unwrap();
        machine
    }

    /// Puts version `version` of the image into the store, and lets its name point there.
    pub(crate) fn image(&self, version: u8) -> RefTarget {
        let transaction = self.store.begin().unwrap();
        let put = |text: String| transaction.put_bytes(text.as_bytes()).unwrap();
        let long = "x".repeat(100);
        let mut tree = Tree::new(owned(0o755));
        let mut add = |path: &str, content: FileContent| {
            let path = TreePath::try_from(path).unwrap();
            let (parents, last) = path.split_last().unwrap();
            let parent = parents.iter().fold(Tree::ROOT, |at, name| {
                tree.child(at, name.as_bytes()).unwrap_or_else(|| {
                    let node = Node::new(owned(0o755), Content::empty_directory());
                    tree.insert(at, name.clone(), node).unwrap()
                })
            });
            let node = Node::new(owned(0o644), Content::File(content));
            tree.insert(parent, last.clone(), node).unwrap();
        };
        let modules = format!("usr/lib/modules/6.{version}");
        add(
            &format!("{modules}/vmlinuz"),
            put(format!("kernel {version} {long}")),
        );
        add(
            &format!("{modules}/initramfs.img"),
            put(format!("initramfs {version} {long}")),
        );
        add(
            "usr/lib/os-release",
            put(format!(
                "PRETTY_NAME=\"An OS {version}\"\nVERSION_ID={version}\n"
            )),
        );
        add(
            "usr/lib/bedplate/kargs.d/10.toml",
            put(format!("kargs = [\"image={version}\"]\n")),
        );
        let config = self.config.get();
        if !config.is_empty() {
            add("usr/lib/bedplate/machine.toml", put(config.to_owned()));
        }
        for (path, text) in etc_files(version) {
            add(&format!("etc/{path}"), put(text));
        }
        let manifest = transaction
            .put_blob(format!("manifest {version}").as_bytes())
            .unwrap();
        let root = transaction.put_image(&tree, RuleSet::Exact1).unwrap();
        let target = RefTarget {
            manifest: Some(manifest),
            ..RefTarget::new(root, 0)
        };
        transaction.set_ref(&name(), target.clone()).unwrap();
        transaction.commit().unwrap();
        target
    }

    fn memory(&self) -> Memory {
        Memory {
            files: Rc::clone(&self.boot),
            power: self.power.clone(),
            room: self.room,
        }
    }

    /// What would be the running system's root.
    pub(crate) fn system(&self) -> PathBuf {
        self.root().join("system")
    }

    /// Calls a verb of the machine.
    pub(crate) fn with<T>(&self, verb: impl FnOnce(&Machine<'_>) -> T) -> T {
        let host = Host {
            root: self.root(),
            run: self.run_directory(),
            system: self.system(),
            actor: Actor {
                who: "anna".into(),
                command: "a test".into(),
            },
            now: 1_700_000_000,
            settings: Settings::default(),
            health: HealthConfig::default(),
            keep: KeepConfig::default(),
            local: LocalConfig::default(),
            boot: Box::new(self.memory()),
            watchdog: self.watchdog(),
            writes: Box::new(self.power.clone()),
        };
        let machine = Machine::open(&host).unwrap();
        verb(&machine)
    }

    /// Returns the directory of what lasts until the next boot.
    pub(crate) fn run_directory(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// Returns where the watchdog is, on a machine that has one.
    pub(crate) fn watchdog(&self) -> PathBuf {
        self.directory.path().join("watchdog")
    }

    /// Returns the physical root.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Returns a deployment's /etc.
    pub(crate) fn etc(&self, id: DeploymentId) -> PathBuf {
        self.root()
            .join(layout::DEPLOYMENTS)
            .join(id.to_string())
            .join("etc")
    }

    /// Reads the record.
    pub(crate) fn record(&self) -> Record {
        record_file::read(&self.root()).unwrap()
    }

    /// Returns the names of entries on the boot partition.
    pub(crate) fn entries(&self) -> Vec<String> {
        let observed = render::observe(&self.memory()).unwrap();
        let mut names: Vec<_> = observed.entries.iter().map(ToString::to_string).collect();
        names.sort();
        names
    }

    /// Returns everything on the boot partition.
    #[allow(dead_code, reason = "asked for with one of the loaders")]
    pub(crate) fn boot_files(&self) -> Files {
        self.boot.borrow().clone()
    }

    /// Reads the entry of this name.
    pub(crate) fn read(&self, name: &str) -> String {
        let path = LOADER.entry_path(&name.parse().unwrap());
        let bytes = self.boot.borrow()[&path].clone();
        String::from_utf8(bytes).unwrap()
    }

    /// Lets the boot partition lose the entry of this name.
    pub(crate) fn lose(&self, name: &str) {
        let path = LOADER.entry_path(&name.parse().unwrap());
        assert!(
            self.boot.borrow_mut().remove(&path).is_some(),
            "{path} was there"
        );
    }

    /// Powers on: the loader chooses, and early boot tells what was booted.
    pub(crate) fn boot(&mut self) -> DeploymentId {
        self.power.leave(None);
        let id = match LOADER {
            Loader::SystemdBoot => choose(&mut self.memory()),
            Loader::Grub => choose_as_grub(&mut self.boot.borrow_mut()).expect("something boots"),
        };
        let record = self.record();
        let deployment = record.deployment(id).expect("what boots is in the record");
        assert!(
            self.etc(id).is_dir() || deployment.etc != EtcMode::Merged,
            "deployment {id} has its /etc"
        );
        let booted = serde_json::json!({
            "deployment": id,
            "root": deployment.root,
            "verity": "require",
            "kernel-features": {},
        });
        let run = self.run_directory();
        fs::remove_dir_all(&run).unwrap();
        fs::create_dir(&run).unwrap();
        fs::write(run.join("booted.json"), booted.to_string()).unwrap();
        self.booted = id;
        id
    }
}

/// Files of an image's /etc.
fn etc_files(version: u8) -> [(&'static str, String); 4] {
    [
        ("hostname", "unnamed\n".to_owned()),
        ("release", format!("version {version}\n")),
        (
            "app/settings",
            format!("setting {} {version}\n", "y".repeat(80)),
        ),
        (
            "passwd",
            format!("root:x:0:0::/root:/bin/sh\nsystem{version}:x:{version}00:1::/:/x\n"),
        ),
    ]
}

/// Does what early boot does at the first boot: the image's /etc, as it is.
fn write_etc(etc: &Path, version: u8) {
    for (path, text) in etc_files(version) {
        let path = etc.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    for directory in [etc.to_owned(), etc.join("app")] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Makes metadata of whoever runs the test, so that who is not root can write it.
fn owned(mode: u16) -> Metadata {
    let mine = fs::metadata("/proc/self").unwrap();
    Metadata {
        mode,
        uid: mine.uid(),
        gid: mine.gid(),
        ..Metadata::default()
    }
}

/// Does what systemd-boot does.
fn choose(partition: &mut Memory) -> DeploymentId {
    let chosen = loader::choose(partition).unwrap();
    for path in chosen.files() {
        let there = partition.read(path).unwrap();
        assert!(
            there.is_some_and(|bytes| !bytes.is_empty()),
            "{path} is there"
        );
    }
    loader::count(partition, &chosen).unwrap();
    chosen.arguments().unwrap().deployment
}

/// Does what our configuration of GRUB says: the trial, where it has tries and its base is the default, counted
/// in the sector before it is loaded; else the default.
fn choose_as_grub(files: &mut Files) -> Option<DeploymentId> {
    assert_eq!(files[grub::CONFIG], grub::CONFIG_TEXT.as_bytes());
    let environment = Environment::parse(&files[grub::ENVIRONMENT])?;
    let default = environment.loader.default;
    let hopeful = |trial: &Trial| {
        let there = files.contains_key(&LOADER.entry_path(&trial.name()));
        trial.base == default && trial.left > 0 && there
    };
    let mut name = EntryName::proven(default);
    if let Some(trial) = environment.trial.filter(hopeful) {
        name = trial.name();
        let counted = Environment {
            trial: Some(Trial {
                left: trial.left - 1,
                done: trial.done + 1,
                ..trial
            }),
            ..environment
        };
        files.insert(grub::ENVIRONMENT.to_owned(), counted.to_sector().to_vec());
    }
    let text = String::from_utf8(files.get(&LOADER.entry_path(&name))?.clone()).unwrap();
    let words: Vec<&str> = text.split('\'').collect();
    for path in words.iter().filter_map(|word| word.strip_prefix("/EFI/")) {
        assert!(files.contains_key(&format!("EFI/{path}")), "{path} is there");
    }
    let key = format!("{}=", cmdline::DEPLOYMENT);
    words.iter().find_map(|word| word.strip_prefix(&key))?.parse().ok()
}
