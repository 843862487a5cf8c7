//! The plan of an install, and its execution.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bedplate_boot::grub::{self, BootCode};
use bedplate_boot::loader::Loader;
use bedplate_boot::partition::BootPartition as _;
use bedplate_boot::{kargs, loader_update, render};
use bedplate_model::record::{Deployment, LocalKargs, OtherFields, Record, State};
use bedplate_model::{
    FileContent, ImageName, ImageSelector, ObjectId, RootDigest, Tree, human, tree,
};
use bedplate_store::{FindError, Found, ReadStoreError, RefTarget, Store};

use super::content::{self, ContentError};
use super::esp::FatPartition;
use super::ext4::{self, Ext4Error};
use super::fat_time::FatTime;
use super::layout::{ALIGN, ESP_DEFAULT, Firmware, Layout, LayoutError, mib};
use super::staging::{Staging, StagingError};
use super::table::{self, Identifiers, SECTOR, TableError};
use super::target::{Target, TargetError, Writing};
use crate::bootable::{self, BootFile, Bootable, BootableError};
use crate::config::LocalConfig;

/// How an image is installed.
#[derive(Clone, Debug)]
pub struct InstallOptions {
    /// What will start the machine.
    pub firmware: Firmware,
    /// The size of a FILE; otherwise what the image needs, and room for one more. A disk has its own.
    pub size: Option<u64>,
    /// The size of the ESP; otherwise [`ESP_DEFAULT`].
    pub esp_size: Option<u64>,
    /// Where the machine looks for upgrades; otherwise the image's own name.
    pub upgrade_from: Option<ImageName>,
    /// Kernel arguments of this machine.
    pub kargs: Vec<String>,
    /// Permits objects that are not sealed with fs-verity.
    pub allow_unsealed: bool,
    /// Permits that what the target holds is lost.
    pub wipe: bool,
    /// The identifiers of the disk and its parts.
    pub identifiers: Identifiers,
    /// What time it is, in seconds since 1970.
    pub now: i64,
    /// The time of every file on the ESP, in seconds since 1970 (`SOURCE_DATE_EPOCH`); otherwise FAT's
    /// first one. Never the clock's: the same image gives the same bytes.
    pub source_date: Option<i64>,
}

/// What is told while a plan is executed.
pub trait InstallObserver {
    /// The next step begins.
    fn on(&mut self, event: InstallEvent);
}

/// One step of an install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallEvent {
    /// The ESP is being written.
    BootPartition,
    /// The root's content is being put together.
    Content {
        /// How many objects it has.
        objects: usize,
    },
    /// The root is being written.
    Root,
    /// The partition table is being written.
    Table,
}

/// Nobody who wants to know.
impl InstallObserver for () {
    fn on(&mut self, _: InstallEvent) {}
}

/// Everything that an install will do.
#[derive(Debug)]
pub struct InstallPlan<'a> {
    store: &'a Store,
    path: PathBuf,
    target: Target,
    image: RefTarget,
    tree: Tree,
    bootable: Bootable,
    record: Record,
    layout: Layout,
    identifiers: Identifiers,
    content: Content,
    loader: LoaderCode,
    boot: render::Plan,
    allow_unsealed: bool,
    written: FatTime,
}

/// Where the loader lies on the ESP: where firmware looks on any disk, and where its own tools do.
const LOADER_PATHS: [&str; 2] = [loader_update::REMOVABLE, loader_update::PRIMARY];

/// The loader itself, which comes from the image.
#[derive(Debug)]
enum LoaderCode {
    /// For UEFI: a file on the ESP.
    SystemdBoot(BootFile),
    /// For a BIOS: outside of any file system.
    Grub(Box<BootCode>),
}

/// What the root will hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Content {
    /// How many objects.
    objects: usize,
    /// The bytes of the objects and of the image.
    bytes: u64,
    /// What they and everything else take on the disk.
    disk: u64,
    /// How many inodes they need.
    inodes: u64,
}

/// What boots a deployment where something else than the loader starts it.
#[derive(Clone)]
pub struct DirectBoot {
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The initramfs.
    pub initramfs: Vec<u8>,
    /// The command line that the boot entry has.
    pub arguments: String,
}

impl fmt::Debug for DirectBoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectBoot")
            .field("arguments", &self.arguments)
            .finish_non_exhaustive()
    }
}

/// A disk that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The first deployment.
    pub deployment: Deployment,
    /// The size of the disk.
    pub size: u64,
}

impl<'a> InstallPlan<'a> {
    /// Computes what an install of an image will do; nothing is changed.
    pub fn new(
        store: &'a Store,
        image: &ImageSelector,
        path: &Path,
        options: &InstallOptions,
    ) -> Result<Self, PlanError> {
        // 1. What is installed.
        let Found {
            name,
            target: image,
        } = store
            .find(image)?
            .ok_or_else(|| PlanError::NoImage(image.clone()))?;
        let follows = match (&options.upgrade_from, name) {
            (Some(name), _) => name.clone(),
            // Upgrades come by tag; an image that is named by its digest alone stays the one that it is.
            (None, Some(name)) if name.tag().is_some() => name.without_digest(),
            (None, Some(name)) => name,
            (None, None) => return Err(PlanError::Unnamed(image.root)),
        };
        let tree = store.tree(&image.root)?;
        let bootable = Bootable::read(store, &tree)?;
        if let Some(argument) = options.kargs.iter().find(|text| !kargs::is_argument(text)) {
            return Err(PlanError::Karg(argument.clone()));
        }

        // 2. Where it goes.
        let target = Target::look(path, options.wipe)?;
        let content = Content::of(store, &tree, &image)?;
        let boot_bytes = bootable.vmlinuz.bytes.len() + bootable.initramfs.bytes.len();
        let esp = options.esp_size.unwrap_or(ESP_DEFAULT);
        // An upgrade writes the new kernel before it may remove the old one.
        let esp_needed = 2 * boot_bytes as u64 + 4 * ALIGN;
        if esp < esp_needed {
            return Err(PlanError::SmallEsp {
                esp,
                needed: esp_needed,
            });
        }
        let size = match target {
            Target::Disk { size } => size,
            Target::File => options
                .size
                .unwrap_or_else(|| Layout::needed(options.firmware, esp, 2 * content.disk)),
        };
        let layout = Layout::new(options.firmware, size, esp, content.disk)?;
        let loader = LoaderCode::of(store, &tree, &bootable, &layout)?;

        // 3. The machine's first record.
        let deployment = Deployment {
            id: options.identifiers.deployment,
            sequence: 1,
            image: follows,
            root: image.root,
            manifest: image.manifest,
            version: bootable.version.clone(),
            title: bootable.title.clone(),
            kernel: bootable.release.clone(),
            vmlinuz: bootable.vmlinuz.sha256,
            initramfs: bootable.initramfs.sha256,
            kargs: [bootable.kargs.clone(), options.kargs.clone()].concat(),
            state: State::Trial,
            reason: None,
            base: None,
            failure: None,
            failed_units: Vec::new(),
            created: options.now,
            signature: image.signature.clone(),
            local_kargs: Some(LocalKargs {
                append: options.kargs.clone(),
                delete: Vec::new(),
            }),
            pinned: false,
            etc: bootable.config.over(&LocalConfig::default()).etc.mode,
            other: OtherFields::new(),
        };
        let record = Record::new(options.identifiers.root.to_string(), deployment);
        let settings = render::Settings {
            unsealed_allowed: options.allow_unsealed,
            ..render::Settings::default()
        };
        let nothing = render::Observed {
            flavour: loader.flavour(),
            ..render::Observed::default()
        };
        let boot = render::render(&record, &nothing, &settings)?;
        Ok(Self {
            store,
            path: path.to_owned(),
            target,
            image,
            tree,
            bootable,
            loader,
            boot,
            record,
            layout,
            identifiers: options.identifiers,
            content,
            allow_unsealed: options.allow_unsealed,
            written: options
                .source_date
                .map_or(FatTime::FIRST, FatTime::from_unix),
        })
    }

    /// Returns the first deployment.
    pub fn deployment(&self) -> &Deployment {
        &self.record.deployments[0]
    }

    /// Returns how many bytes the execution writes at most; a FILE takes no more until it is booted.
    pub fn space(&self) -> u64 {
        let boot = [&self.bootable.vmlinuz, &self.bootable.initramfs]
            .iter()
            .map(|file| file.bytes.len() as u64)
            .fold(0, u64::saturating_add);
        self.content.disk.saturating_add(2 * boot)
    }

    /// Returns what boots the deployment where something else than the loader starts it.
    pub fn direct(&self) -> DirectBoot {
        let options = self.boot.operations.iter().find_map(|step| match step {
            render::Operation::Entry { entry, .. } => Some(entry.command_line()),
            _ => None,
        });
        DirectBoot {
            kernel: self.bootable.vmlinuz.bytes.clone(),
            initramfs: self.bootable.initramfs.bytes.clone(),
            arguments: options.unwrap_or_default(),
        }
    }

    /// Executes the plan.
    ///
    /// `privileged` says whether this process is root; otherwise the root is made in a user namespace.
    pub fn execute(
        self,
        privileged: bool,
        observer: &mut dyn InstallObserver,
    ) -> Result<Installed, ExecuteError> {
        let mut writing = Writing::begin(&self.path, self.target, self.layout.size)?;

        observer.on(InstallEvent::BootPartition);
        self.write_core(&writing.disk)?;
        self.write_esp(&writing.disk)?;

        observer.on(InstallEvent::Content {
            objects: self.content.objects,
        });
        let beside_store = self.store.path().parent().unwrap_or(Path::new("/"));
        let beside_target = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        // Beside the store, objects are links; beside the FILE, they are copies.
        let staging = Staging::begin(
            &[beside_store, beside_target],
            &format!(".bedplate-install-{}", std::process::id()),
        )?;
        content::stage(
            self.store,
            &self.tree,
            &self.image,
            &self.deployment().image,
            &self.record,
            staging.path(),
        )?;

        observer.on(InstallEvent::Root);
        ext4::make(
            &writing.path,
            self.layout.root,
            self.identifiers.root,
            staging.path(),
            self.content.inodes,
            privileged,
        )?;

        observer.on(InstallEvent::Table);
        let code = match &self.loader {
            LoaderCode::SystemdBoot(_) => None,
            LoaderCode::Grub(code) => Some(&code.mbr),
        };
        table::write(&mut writing.disk, &self.layout, &self.identifiers, code)?;
        writing.finish()?;
        Ok(Installed {
            deployment: self.deployment().clone(),
            size: self.layout.size,
        })
    }
}

impl LoaderCode {
    /// Takes the loader out of the image.
    fn of(
        store: &Store,
        tree: &Tree,
        bootable: &Bootable,
        layout: &Layout,
    ) -> Result<Self, PlanError> {
        let Some(bios_boot) = layout.bios_boot else {
            let loader = bootable.loader.clone().ok_or(PlanError::NoLoader)?;
            return Ok(Self::SystemdBoot(loader));
        };
        let place = grub::Place {
            first_sector: bios_boot.start / SECTOR,
            boot_partition: layout.esp_number(),
        };
        let read = |name: &str| bootable::grub_file(store, tree, name);
        Ok(Self::Grub(Box::new(grub::boot_code(&read, place)?)))
    }

    const fn flavour(&self) -> Loader {
        match self {
            Self::SystemdBoot(_) => Loader::SystemdBoot,
            Self::Grub(_) => Loader::Grub,
        }
    }
}

impl InstallPlan<'_> {
    /// Writes GRUB's core image, for a BIOS.
    fn write_core(&self, disk: &File) -> Result<(), ExecuteError> {
        use std::os::unix::fs::FileExt as _;
        if let (LoaderCode::Grub(code), Some(bios_boot)) = (&self.loader, self.layout.bios_boot) {
            disk.write_all_at(&code.core, bios_boot.start)
                .map_err(ExecuteError::Core)?;
        }
        Ok(())
    }

    /// Writes the ESP: the loader, and what is rendered from the record.
    fn write_esp(&self, disk: &File) -> Result<(), ExecuteError> {
        let mut partition =
            FatPartition::format(disk, self.layout.esp, self.identifiers.esp_serial)
                .map_err(ExecuteError::Esp)?;
        if let LoaderCode::SystemdBoot(loader) = &self.loader {
            for path in LOADER_PATHS {
                partition
                    .write(path, &loader.bytes)
                    .map_err(ExecuteError::Esp)?;
            }
        }
        let files = [&self.bootable.vmlinuz, &self.bootable.initramfs];
        render::execute(&self.boot, &mut partition, &|wanted| {
            files
                .iter()
                .find(|file| file.sha256 == *wanted)
                .map(|file| file.bytes.clone())
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        })?;
        partition.finish(self.written).map_err(ExecuteError::Esp)
    }
}

impl Content {
    /// Counts what the root will hold, and what that takes.
    fn of(store: &Store, tree: &Tree, image: &RefTarget) -> Result<Self, PlanError> {
        let mut sizes: BTreeMap<ObjectId, u64> = BTreeMap::new();
        let mut copied = 0_u64;
        let mut copied_nodes = 0_u64;
        for (path, id) in tree.walk() {
            let top = path.components().first().map(|name| name.as_bytes());
            // The first boot copies these two out of the image.
            let is_copied = matches!(top, Some(b"etc" | b"var"));
            if is_copied {
                copied_nodes += 1;
            }
            if let tree::Content::File(content) = &tree.node(id).content {
                if let FileContent::Object { id, size } = content {
                    sizes.insert(*id, *size);
                }
                if is_copied {
                    copied = copied.saturating_add(blocks(content.size()));
                }
            }
        }
        let image_bytes = store
            .image_file(&image.root)?
            .metadata()
            .map_err(PlanError::ImageSize)?
            .len();
        let files = || sizes.values().copied().chain([image_bytes]);
        let sealed = files().map(sealed).fold(0, u64::saturating_add);
        let inodes = sizes.len() as u64 + 2 * copied_nodes + INODES_SPARE;
        let disk = sealed
            .saturating_add(copied)
            .saturating_add(inodes * INODE_BYTES)
            .saturating_add(ROOT_SPARE);
        Ok(Self {
            objects: sizes.len(),
            bytes: files().fold(0, u64::saturating_add),
            disk: disk.saturating_add(disk / 32), // the file system's own tables and reserve
            inodes,
        })
    }
}

/// Inodes for directories of the store, the record, and what a machine makes in /var before it grows.
const INODES_SPARE: u64 = 8192;

/// What one inode takes.
const INODE_BYTES: u64 = 256;

/// Room for the journal, and for what a machine writes into /var before it grows.
const ROOT_SPARE: u64 = 160 << 20;

/// Returns what a file takes in whole blocks.
fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(ext4::BLOCK).saturating_mul(ext4::BLOCK)
}

/// Returns what a file takes when it is sealed: itself, a hash for each block, and a descriptor.
fn sealed(bytes: u64) -> u64 {
    const HASH: u64 = 32;
    blocks(bytes)
        .saturating_add(blocks(bytes.div_ceil(ext4::BLOCK).saturating_mul(HASH)))
        .saturating_add(ext4::BLOCK)
}

impl fmt::Display for InstallPlan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deployment = self.deployment();
        let what = match self.target {
            Target::File => "file",
            Target::Disk { .. } => "disk",
        };
        writeln!(
            f,
            "Install {} to the {what} {}",
            deployment.image,
            self.path.display()
        )?;
        writeln!(f, "  root digest  {}", deployment.root)?;
        if let Some(manifest) = deployment.manifest {
            writeln!(f, "  manifest     {manifest}")?;
        }
        let version = deployment.version.as_deref().unwrap_or("no version");
        writeln!(f, "  system       {} ({version})", deployment.title)?;
        writeln!(f, "  kernel       {}", deployment.kernel)?;
        writeln!(f, "  deployment   {}", deployment.id)?;
        writeln!(f, "  arguments    {}", deployment.kargs.join(" "))?;
        writeln!(f, "  upgrades     {}", Upgrades(&deployment.image))?;
        writeln!(f, "Partitions of {} in all", mib(self.layout.size))?;
        let bios_boot = self.layout.bios_boot;
        let bios_boot = bios_boot.map(|region| ("bios-boot", "GRUB", region));
        let others = [
            ("esp", "FAT32", self.layout.esp),
            ("bedplate-root", "ext4, fs-verity", self.layout.root),
        ];
        for (name, kind, region) in bios_boot.into_iter().chain(others) {
            let at = format!("{} at {}", mib(region.length), mib(region.start));
            writeln!(f, "  {name:<14} {kind:<16} {at}")?;
        }
        writeln!(f, "  root file system {}", self.identifiers.root)?;
        match &self.loader {
            LoaderCode::SystemdBoot(loader) => {
                writeln!(f, "Boot partition")?;
                for path in LOADER_PATHS {
                    let size = human::bytes(loader.bytes.len() as u64);
                    writeln!(f, "  write {path} ({size})")?;
                }
            }
            LoaderCode::Grub(code) => {
                let size = human::bytes(code.core.len() as u64);
                writeln!(
                    f,
                    "Loader\n  write GRUB into the MBR and bios-boot ({size})"
                )?;
                writeln!(f, "Boot partition")?;
            }
        }
        for step in self.boot.steps() {
            writeln!(f, "  {step}")?;
        }
        let seal = if self.allow_unsealed {
            "objects may stay unsealed"
        } else {
            "sealed at the first boot"
        };
        writeln!(
            f,
            "Root\n  {} objects, {} ({seal})",
            self.content.objects,
            mib(self.content.bytes)
        )
    }
}

/// Where upgrades come from, as a plan says it.
struct Upgrades<'a>(&'a ImageName);

impl fmt::Display for Upgrades<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name) = self;
        let switch = "`bedplate switch` names one";
        if name.is_local() {
            return write!(f, "no source: {name} is in no registry; {switch}");
        }
        match (name.tag(), name.digest()) {
            (Some(_), None) => write!(f, "from {name}"),
            _ => write!(f, "no source: {name} is one image for ever; {switch}"),
        }
    }
}

/// Why an image cannot be installed as asked.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The store has no such image.
    #[error("the store has no image {0}")]
    NoImage(ImageSelector),
    /// The store could not be asked.
    #[error(transparent)]
    Find(#[from] FindError),
    /// It is not known where the machine would look for upgrades.
    #[error("{0} has no name that the machine could look for upgrades under")]
    Unnamed(RootDigest),
    /// The image could not be read.
    #[error(transparent)]
    Read(#[from] ReadStoreError),
    /// The image's own file could not be looked at.
    #[error("cannot look at the image's file")]
    ImageSize(#[source] io::Error),
    /// The image cannot be booted.
    #[error(transparent)]
    Bootable(#[from] BootableError),
    /// The image has no boot loader.
    #[error("the image has no /{}", bedplate_model::layout::SYSTEMD_BOOT)]
    NoLoader,
    /// The image has no boot loader for a BIOS, or a strange one.
    #[error(transparent)]
    Grub(#[from] grub::BuildError),
    /// A kernel argument that is none.
    #[error("`{0}` is not one kernel argument")]
    Karg(String),
    /// The target cannot be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The ESP could not hold the kernels of two deployments.
    #[error(
        "an EFI system partition of {} is too small for two kernels; {} are needed",
        mib(*.esp), mib(*.needed)
    )]
    SmallEsp {
        /// What was asked for.
        esp: u64,
        /// What is needed.
        needed: u64,
    },
    /// The boot partition's files could not be planned.
    #[error(transparent)]
    Boot(#[from] render::PlanError),
    /// The disk cannot be divided.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// Why an install failed. A FILE does not have its name then, and a disk no partition table.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The target could not be written.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The ESP could not be written.
    #[error("cannot write the EFI system partition")]
    Esp(#[source] io::Error),
    /// GRUB could not be written.
    #[error("cannot write the BIOS boot partition")]
    Core(#[source] io::Error),
    /// The boot files could not be written.
    #[error(transparent)]
    Boot(#[from] render::ExecuteError),
    /// There was no place for the root's content.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The root's content could not be put together.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The root could not be made.
    #[error(transparent)]
    Root(#[from] Ext4Error),
    /// The partition table could not be written.
    #[error(transparent)]
    Table(#[from] TableError),
}
