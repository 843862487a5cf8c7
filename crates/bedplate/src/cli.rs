//! What a person types: every verb and its options, and nothing of what they do.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;

use bedplate_build::lint::LINTS;
use bedplate_model::image::ParseImageNameError;
use bedplate_model::{DeploymentSelector, ErofsVersion, ImageName, ImageSelector, human};
use bedplate_transport::Recipe;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Builds, ships, boots and rolls back whole Linux systems as verified images.
#[derive(Debug, Parser)]
#[command(name = "bedplate", version, max_term_width = 100, after_help = HELP_END)]
pub(crate) struct Cli {
    /// The store to work on [default: the machine's own where Bedplate runs it, else
    /// $XDG_DATA_HOME/bedplate/store]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,

    /// Draw no progress; `images` prints names alone
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const HELP_END: &str = "\
An image of the store is named [HOST/]REPOSITORY[:TAG][@DIGEST], or by its root digest, or by the
first digits of its root or manifest digest where they fit one image only.

Exit codes say who must act:
  0  done                          4  the remote side: a registry, the network
  1  the answer is no              5  damage: something is not what its digest says
  2  you: the command or its input 70 us: a bug in bedplate
  3  this host: disk, permissions, tools";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a bootable image from a root directory
    Build(Build),
    /// Store a directory as an image
    Commit(Commit),
    /// Restore an image to a directory, every attribute exactly
    Checkout(Checkout),
    /// Store a tar file or stream as an image
    ///
    /// The tar is a root file system, and no layer of an image: a name that begins with `.wh.` is a file of
    /// that name. An image with such a name can be exported, and not pushed.
    Import(Import),
    /// Write an image as a tar file or stream
    ///
    /// Sockets, which no tar can hold, are left out and named. Holes of files are written as zeros.
    Export(Export),
    /// Print the root digest of a directory as it lies on disk
    Digest(Digest),
    /// Fetch an image from a registry
    Pull(Pull),
    /// Send an image to a registry
    Push(Push),
    /// Give an image one more name
    Tag(Tag),
    /// Take names away
    Untag(Untag),
    /// List the images of the store
    Images(Images),
    /// Show everything about an image
    Inspect(Inspect),
    /// Show which images a name had, and how the current one came to be
    Log(Log),
    /// List a directory of an image
    Ls(Ls),
    /// Print files of an image
    Cat(Cat),
    /// Say what changed between two images or directories
    ///
    /// `/` is the running system: its other mounts (a mounted /usr or /etc belongs to it) and what lies in
    /// /dev, /proc, /run, /sys, /sysroot, /tmp and /var is no part of an image, and is left out on both
    /// sides. What changes while it is read is named, and not compared.
    Diff(Diff),
    /// Mount an image read-only
    Mount(Mount),
    /// Take a mounted image off
    Umount(Umount),
    /// Check whether a directory or an image makes a good bootable image
    Lint(Lint),
    /// Serve an OCI registry over a directory
    Serve(Serve),
    /// Remove what no name reaches
    ///
    /// A name reaches its earlier images, too (`log` lists them): up to 100 stay unless --keep, --older-than
    /// or --max-size says otherwise.
    Gc(Gc),
    /// Check every object, image and name of the store
    Fsck(Fsck),
    /// Say what each image takes of the disk, and what it shares
    Df(Df),
    /// Install an image
    #[command(subcommand)]
    Install(Install),
    /// Show this machine's deployments
    Status(Status),
    /// Fetch and stage the newest version of this machine's image
    Upgrade(Upgrade),
    /// Fetch and stage another image
    Switch(Switch),
    /// Make the previous deployment boot next
    Rollback(Rollback),
    /// Keep a deployment, whatever comes after it
    Pin(Pin),
    /// Let a deployment go once nothing else needs it, which may be at once
    Unpin(Pin),
    /// Remove a deployment; of one that is staged: cancel the upgrade
    ///
    /// What runs, what boots next, what boots when a trial fails, and what is pinned is refused. What `rollback`
    /// would go to is not.
    Undeploy(Undeploy),
    /// Show or change the kernel arguments of what boots next
    ///
    /// A change is staged as an upgrade is: it boots at the next reboot, on trial, and gives way when the machine
    /// does not become healthy with it. Deletions are done first, then replacements. What is deleted of an image
    /// stays deleted in later ones; `undeploy` of what is staged takes a change back.
    Kargs(Kargs),
    /// Make /usr writable until the next reboot
    ///
    /// What is written there lies in /var/tmp and is gone after the reboot. For looking into what is wrong, with
    /// tools that the image does not have, and for trying what may become an image.
    UsrOverlay,
    /// Say why this machine is not updating, or not on what it was asked for
    ///
    /// Asks the registry what is new there. The exit code is 1 where there is a reason.
    Why(Why),
    /// Show who changed what on this machine, when and why
    Events(Events),
    /// Boot an image in a virtual machine, without installing it
    ///
    /// The image is installed to a disk of its own, which is gone afterwards, and booted by QEMU as a machine
    /// would boot it. Neither root nor anything in the image is needed for --test; --ssh needs its sshd.
    #[command(after_help = VM_HELP_END)]
    Vm(Vm),
    /// What the machine's own units call
    #[command(subcommand, hide = true)]
    Internal(Internal),
}

/// Returns whether the verb of a command line is `vm`, where it cannot be parsed: its exit codes are its own.
pub(crate) fn is_vm(words: impl IntoIterator<Item = OsString>) -> bool {
    let mut words = words.into_iter().skip(1);
    while let Some(word) = words.next() {
        if word == "--store" {
            words.next();
        } else if !word.as_encoded_bytes().starts_with(b"-") {
            return word == "vm";
        }
    }
    false
}

impl Verb {
    /// Returns what a machine's log calls a verb that may change it.
    pub(crate) fn command(&self) -> &'static str {
        match self {
            Self::Upgrade(_) => "upgrade",
            Self::Switch(_) => "switch",
            Self::Rollback(_) => "rollback",
            Self::Pin(_) => "pin",
            Self::Unpin(_) => "unpin",
            Self::Undeploy(_) => "undeploy",
            Self::Kargs(_) => "kargs",
            Self::UsrOverlay => "usr-overlay",
            Self::Internal(Internal::Upgrade) => "automatic upgrade",
            Self::Internal(Internal::Finalize) => "finalize",
            Self::Internal(Internal::Prove | Internal::Check | Internal::Heal) => "health gate",
            _ => "bedplate",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The root directory
    #[arg(long, value_name = "DIR")]
    pub(crate) rootfs: PathBuf,
    /// The name of the image
    #[arg(long = "tag", short = 't', value_name = "REF")]
    pub(crate) name: ImageName,
    /// A label of the image
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// A kernel argument of the image
    #[arg(long = "karg", value_name = "ARG")]
    pub(crate) kargs: Vec<String>,
    /// How layers are compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::Zstd)]
    pub(crate) compression: CompressionArg,
    /// The early-boot program [default: bedplate-init beside this program]
    #[arg(long, value_name = "FILE")]
    pub(crate) init: Option<PathBuf>,
    /// The host name of every machine of the image
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Refuse warnings, too
    #[arg(long)]
    pub(crate) fatal_warnings: bool,
    /// Switch a lint off
    #[arg(long = "skip-lint", value_name = "LINT", value_parser = lint_names())]
    pub(crate) skip_lints: Vec<String>,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CompressionArg {
    /// Zstandard, level 3
    Zstd,
    /// gzip, level 6: for registries and tools that know nothing else
    Gzip,
    /// Plain tar
    None,
}

impl From<CompressionArg> for Recipe {
    fn from(argument: CompressionArg) -> Self {
        match argument {
            CompressionArg::Zstd => Self::ZSTD,
            CompressionArg::Gzip => Self::GZIP,
            CompressionArg::None => Self::None,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// The directory
    pub(crate) directory: PathBuf,
    /// The name of the image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageName,
    /// Read every file, also those that have not changed since the last commit
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Checkout {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageSelector,
    /// The directory: empty, or not there yet
    pub(crate) directory: PathBuf,
    /// Leave out what only root can restore (owners, device nodes, setuid bits, some extended
    /// attributes), and say how much that was
    #[arg(long)]
    pub(crate) unprivileged: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The tar file, plain or compressed with gzip or zstd; `-` for standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The name of the image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageName,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageSelector,
    /// The file, replaced once the new one is whole; `-` for standard output [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Digest {
    /// The directory
    pub(crate) directory: PathBuf,
    /// The lowest version of the image format, as mkcomposefs's --min-version
    #[arg(long, value_name = "0|1", default_value = "1", value_parser = str::parse::<ErofsVersion>)]
    pub(crate) format_version: ErofsVersion,
    /// Give every name a file of its own, and print the bare digest, as mkcomposefs does
    #[arg(long)]
    pub(crate) break_hardlinks: bool,
}

/// Reads where a layout is, as skopeo names it.
fn layout(text: &str) -> Result<PathBuf, &'static str> {
    match text.strip_prefix("oci:") {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err("a layout is named oci:DIR"),
    }
}

/// How to reach a registry.
#[derive(Debug, Default, Args)]
pub(crate) struct Remote {
    /// Whether the registry must prove itself by TLS
    #[arg(long, value_name = "true|false", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pub(crate) tls_verify: Option<bool>,
    /// The file with credentials
    #[arg(long, value_name = "FILE")]
    pub(crate) authfile: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageName,
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// Read an OCI image layout, such as `skopeo copy` makes, instead of the registry
    #[arg(long, value_name = "oci:DIR", value_parser = layout)]
    pub(crate) from: Option<PathBuf>,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The image in the store
    #[arg(value_name = "REF")]
    pub(crate) name: ImageSelector,
    /// Where it goes [default: where its name says]
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: Option<ImageName>,
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// How the layer of an image without a manifest is compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::Zstd)]
    pub(crate) compression: CompressionArg,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// The image; `NAME~1` is what the name pointed at before
    #[arg(value_name = "REF")]
    pub(crate) source: ImageSelector,
    /// Its new names
    #[arg(value_name = "NEW", required = true)]
    pub(crate) names: Vec<ImageName>,
}

#[derive(Debug, Args)]
pub(crate) struct Untag {
    /// The names
    #[arg(value_name = "REF", required = true, value_parser = whole_name)]
    pub(crate) names: Vec<ImageName>,
}

#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Show names that deployments hold, too
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageSelector,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Log {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageSelector,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageSelector,
    /// The path
    #[arg(default_value = "/")]
    pub(crate) path: PathBuf,
    /// Show mode, owner, size and time
    #[arg(long, short)]
    pub(crate) long: bool,
    /// Go below directories
    #[arg(long, short = 'R')]
    pub(crate) recursive: bool,
    /// Print a JSON document: an array with all attributes of each entry
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cat {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageSelector,
    /// The files
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// An image, or a directory (a path with a slash in front, `./`, or `..`)
    #[arg(value_name = "A")]
    pub(crate) old: String,
    /// The other one
    #[arg(value_name = "B")]
    pub(crate) new: String,
    /// Show every path
    #[arg(long)]
    pub(crate) files: bool,
    /// Leave out files and directories that differ in their modification time alone
    #[arg(long)]
    pub(crate) ignore_times: bool,
    /// End with exit code 1 where anything differs; without this, a difference is no failure (0)
    #[arg(long)]
    pub(crate) exit_code: bool,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Mount {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageSelector,
    /// Where
    pub(crate) directory: PathBuf,
    /// Refuse objects that are not sealed with fs-verity
    #[arg(long)]
    pub(crate) verity: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Umount {
    /// Where
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Lint {
    /// A directory (a path with a slash in front, `./`, or `..`) or an image
    #[arg(value_name = "DIR|REF", required_unless_present = "list")]
    pub(crate) subject: Option<String>,
    /// Switch a lint off
    #[arg(long, value_name = "LINT", value_parser = lint_names())]
    pub(crate) skip: Vec<String>,
    /// Refuse warnings, too
    #[arg(long)]
    pub(crate) fatal_warnings: bool,
    /// Say what is checked
    #[arg(long)]
    pub(crate) list: bool,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The address and port; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    pub(crate) listen: std::net::SocketAddr,
    /// The directory with the registry's content
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Let each name keep only so many images, the current one among them; 1 forgets all earlier ones
    #[arg(long, value_name = "N", value_parser = keep)]
    pub(crate) keep: Option<NonZeroU32>,
    /// Forget earlier images of names that were replaced longer ago, such as 12h, 30d or 8w
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub(crate) older_than: Option<u64>,
    /// Forget earlier images of names, the longest replaced first, until the store has at most this size,
    /// such as 20G; what nothing is freed by is not forgotten
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_size: Option<u64>,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Df {
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Fsck {
    /// Check names and sizes alone, and read no content
    #[arg(long, conflicts_with = "repair")]
    pub(crate) quick: bool,
    /// Bring back what is damaged or missing: from the stores that --from names, then from the
    /// registries that images came from
    #[arg(long)]
    pub(crate) repair: bool,
    /// Make the index anew, by which contents are found under their SHA-256
    #[arg(long, conflicts_with_all = ["quick", "repair"])]
    pub(crate) rebuild_index: bool,
    /// Another store to repair from
    #[arg(long, value_name = "STORE", requires = "repair")]
    pub(crate) from: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Install {
    /// Install to a disk image file, or to a disk
    ToDisk(ToDisk),
}

#[derive(Debug, Args)]
pub(crate) struct ToDisk {
    /// The file or the disk
    #[arg(value_name = "FILE")]
    pub(crate) target: PathBuf,
    /// The image, from the store
    #[arg(long, value_name = "REF")]
    pub(crate) image: ImageSelector,
    /// Where the machine looks for upgrades [default: the image's name; none where that has no tag]
    #[arg(long, value_name = "REF")]
    pub(crate) target_image: Option<ImageName>,
    /// What starts the machine: systemd-boot from UEFI, or GRUB from a BIOS
    #[arg(long, value_enum, default_value_t = Boot::Uefi)]
    pub(crate) boot: Boot,
    /// The size of a file, such as 10G; it grows to its disk at the first boot [default: what the image
    /// needs, and room for one more]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) size: Option<u64>,
    /// The size of the EFI system partition (the boot partition, also for a BIOS)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) esp_size: Option<u64>,
    /// A kernel argument of this machine
    #[arg(long = "karg", value_name = "ARG")]
    pub(crate) kargs: Vec<String>,
    /// Permit objects that are not sealed with fs-verity
    #[arg(long)]
    pub(crate) allow_unsealed: bool,
    /// Overwrite what the target holds
    #[arg(long)]
    pub(crate) wipe: bool,
    /// Print the plan, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

const VM_HELP_END: &str = "\
The exit code is that of the script or of COMMAND. Where the machine could not be run, or did not come so far,
it is 125.

  bedplate vm os:1                            the serial console, on a terminal
  bedplate vm os:1 --ssh                      a shell
  bedplate vm os:1 --ssh -- systemctl --failed
  bedplate vm os:1 --test check.sh -- --fast  a script of this host, with an argument";

#[derive(Debug, Args)]
pub(crate) struct Vm {
    /// The image: from the store, else from the registry of its name
    #[arg(value_name = "REF")]
    pub(crate) image: ImageSelector,
    /// Show the serial console; Ctrl-A X ends the machine [default on a terminal]
    #[arg(long, conflicts_with_all = ["ssh", "test"])]
    pub(crate) console: bool,
    /// Open a shell as root, or run COMMAND, by ssh with a key of this run
    #[arg(long, conflicts_with = "test")]
    pub(crate) ssh: bool,
    /// Run a script of this host in the machine as root once it is up; `-` for standard input
    #[arg(long, value_name = "SCRIPT")]
    pub(crate) test: Option<PathBuf>,
    /// With --ssh what is run instead of a shell, with --test arguments of the script
    #[arg(last = true, value_name = "COMMAND|ARGUMENT")]
    pub(crate) words: Vec<OsString>,
    /// The machine's memory
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = size)]
    pub(crate) memory: u64,
    /// The machine's processors
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) cpus: NonZeroU32,
    /// A further kernel argument
    #[arg(long = "karg", value_name = "ARG")]
    pub(crate) kargs: Vec<String>,
    /// How long everything may take, such as 90s or 15m [default: 10m with --test, else no limit]
    #[arg(long, value_name = "TIME", value_parser = age)]
    pub(crate) timeout: Option<u64>,
    /// The size of the disk, such as 10G [default: what the image needs, and room for one more]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) disk: Option<u64>,
    /// Make the disk under this name, and leave it there; the machine is then switched off in good order
    #[arg(long, value_name = "FILE")]
    pub(crate) keep: Option<PathBuf>,
    /// Forward a TCP port of this host's loopback to the machine
    #[arg(long = "port", value_name = "HOST:GUEST", value_parser = port)]
    pub(crate) ports: Vec<(u16, u16)>,
    /// Let the machine reach the network, and this host's loopback under 10.0.2.2
    #[arg(long)]
    pub(crate) network: bool,
    /// What starts the kernel
    #[arg(long, value_enum, default_value_t = FirmwareArg::Auto)]
    pub(crate) firmware: FirmwareArg,
    /// Write what the serial console says to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Do not seal the objects with fs-verity at the first boot, which saves some seconds
    #[arg(long)]
    pub(crate) allow_unsealed: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FirmwareArg {
    /// UEFI where its firmware is installed (package ovmf), else none
    Auto,
    /// UEFI firmware, and the image's own boot loader
    Uefi,
    /// QEMU itself, with the kernel, initramfs and arguments of the boot entry
    None,
}

/// What starts a machine.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Boot {
    /// UEFI firmware: the image brings systemd-boot
    Uefi,
    /// A BIOS: the image brings GRUB (Debian: grub-pc-bin)
    Bios,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    pub(crate) remote: Remote,
    #[command(flatten)]
    pub(crate) stage: Stage,
}

#[derive(Debug, Args)]
pub(crate) struct Switch {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) name: ImageName,
    #[command(flatten)]
    pub(crate) remote: Remote,
    #[command(flatten)]
    pub(crate) stage: Stage,
}

/// How a fetched image becomes a deployment.
#[derive(Debug, Args)]
pub(crate) struct Stage {
    /// Only say whether there is something newer (exit code 1: there is not)
    #[arg(long)]
    pub(crate) check: bool,
    /// Fetch, print the plan, and stage nothing
    #[arg(long, conflicts_with = "check")]
    pub(crate) dry_run: bool,
    /// Reboot at once when something was staged
    #[arg(long, conflicts_with_all = ["check", "dry_run"])]
    pub(crate) apply: bool,
    /// Stage a version that failed on this machine before
    #[arg(long)]
    pub(crate) retry: bool,
    /// Read an OCI image layout, such as `skopeo copy` makes, instead of the registry
    #[arg(long, value_name = "oci:DIR", value_parser = layout)]
    pub(crate) from: Option<PathBuf>,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The deployment: its place in `status`, its id, or the first digits of that [default: the previous one]
    #[arg(long, value_name = "DEPLOYMENT")]
    pub(crate) to: Option<DeploymentSelector>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Reboot at once
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) apply: bool,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// The deployment: its place in `status`, its id, or the first digits of that
    #[arg(value_name = "DEPLOYMENT")]
    pub(crate) deployment: DeploymentSelector,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Undeploy {
    /// The deployment: its place in `status`, its id, or the first digits of that
    #[arg(value_name = "DEPLOYMENT")]
    pub(crate) deployment: DeploymentSelector,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Kargs {
    /// Add an argument, after all others
    #[arg(long, value_name = "ARG")]
    pub(crate) append: Vec<String>,
    /// Take an argument away; a KEY takes all of that key
    #[arg(long, value_name = "ARG|KEY")]
    pub(crate) delete: Vec<String>,
    /// Give the one argument of a key another value
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) replace: Vec<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Reboot at once when something was staged
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) apply: bool,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    /// Do not ask the registry
    #[arg(long)]
    pub(crate) offline: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only the last N
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) lines: Option<usize>,
    /// Print a JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Internal {
    /// Finish what was staged (at shutdown)
    Finalize,
    /// Run the health checks
    Check,
    /// Finish or undo what was interrupted, watch what was booted, and prove it
    Prove,
    /// Look after what was booted and is not healthy
    Heal,
    /// Grow the root to its disk (at the first boot)
    Grow,
    /// Register the loader with the firmware, where it is not (at every boot)
    Register,
    /// Upgrade by itself, as far as machine.toml says (by a timer)
    Upgrade,
    /// Connect standard input and output to a socket (for ssh)
    Connect {
        /// The socket
        socket: PathBuf,
    },
}

/// Returns the parser of a lint's name, which lists all of them when there is none of that name.
fn lint_names() -> PossibleValuesParser {
    PossibleValuesParser::new(LINTS.map(|lint| lint.name))
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a label is NAME=VALUE".to_owned()),
    }
}

/// Parses a size: a number of bytes, or one with K, M, G or T (powers of 1024).
fn size(text: &str) -> Result<u64, String> {
    let wrong = || "a size is a number, with K, M, G or T for powers of 1024".to_owned();
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T', 'k', 'm', 'g', 't']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Parses a forwarded port: that of the host, and that of the machine.
fn port(text: &str) -> Result<(u16, u16), String> {
    let wrong = || "a forwarded port is HOST:GUEST, two numbers from 1 to 65535".to_owned();
    let (host, guest) = text.split_once(':').ok_or_else(wrong)?;
    let number = |text: &str| text.parse().ok().filter(|number| *number != 0);
    number(host).zip(number(guest)).ok_or_else(wrong)
}

/// Parses a name that is taken away with all that it remembers.
fn whole_name(text: &str) -> Result<ImageName, String> {
    if let Some((name, _)) = text.split_once('~') {
        return Err(format!(
            "~ and a number mean an earlier image of {name}, which has no name of its own: `bedplate untag {name}` \
             takes the name away with all its images, `bedplate gc --keep N` makes names forget earlier ones"
        ));
    }
    text.parse()
        .map_err(|error: ParseImageNameError| error.to_string())
}

/// Parses how many images a name keeps.
fn keep(text: &str) -> Result<NonZeroU32, String> {
    text.parse()
        .map_err(|_| "not a number from 1 on: a name always keeps its current image".to_owned())
}

/// Parses an age: a number with `m`, `h`, `d` or `w`; gives seconds.
fn age(text: &str) -> Result<u64, String> {
    human::seconds(text)
        .ok_or_else(|| "an age is a number with s, m, h, d or w behind it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_line_of_vm_is_known_though_it_is_wrong() {
        let is = |line: &str| is_vm(line.split(' ').map(OsString::from));
        assert!(is("bedplate vm --nonsense"));
        assert!(is("bedplate --store vm -q vm"));
        assert!(is("bedplate --store=x vm"));
        assert!(!is("bedplate --store vm images"));
        assert!(!is("bedplate images vm"));
        assert!(!is("bedplate"));
    }

    #[test]
    fn forwarded_ports_are_two_numbers() {
        assert_eq!(port("8080:80"), Ok((8080, 80)));
        for text in ["", "80", "0:80", "80:0", "80:65536", "a:b", "1:2:3"] {
            assert!(port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_behind_two_dashes_are_for_the_machine() {
        let parse = |words: &[&str]| {
            let words = ["bedplate", "vm", "os:1"].iter().chain(words);
            Cli::try_parse_from(words).map(|cli| match cli.verb {
                Verb::Vm(vm) => vm,
                other => panic!("{other:?}"),
            })
        };
        let vm = parse(&["--ssh", "--cpus", "1", "--", "systemctl", "--failed"]).unwrap();
        assert_eq!(vm.words, ["systemctl", "--failed"]);
        assert!(vm.ssh && vm.cpus.get() == 1 && vm.memory == 2 << 30);
        assert!(parse(&["systemctl"]).is_err());
        assert!(parse(&["--ssh", "--test", "a.sh"]).is_err());
        assert!(parse(&["--console", "--test", "a.sh"]).is_err());
        assert!(parse(&["--cpus", "0"]).is_err());
    }

    #[test]
    fn sizes_have_one_unit_at_most() {
        assert_eq!(size("4G"), Ok(4 << 30));
        assert_eq!(size("4k"), Ok(4 << 10));
        assert_eq!(size("512"), Ok(512));
        for text in ["", "G", "4GG", "-1", "99999999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
