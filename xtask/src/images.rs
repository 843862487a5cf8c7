//! The two Debian trees of the demo: made once by mmdebstrap, kept, and reused.
//!
//! ```text
//! target/demo/id_ed25519                 the key that opens a shell in both
//! target/demo/<hash of recipe>/          a tree; `<hash>.partial` while it is made
//! ```
//!
//! Version 1 is the release as it came out, with its own kernel; version 2 adds what was published since:
//! updates, security, a newer kernel from backports, and a few packages. Between the two kernels (6.1 and
//! 6.12) lie overlayfs's data-only layers and its fs-verity check, so both forms of mounting are exercised.
//!
//! Root makes trees directly. Everyone else makes them in a user namespace, and has to enter one again to
//! read them: see [`Tree::reader`].

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use testkit::qemu::{KeyPair, REGISTRY};

use crate::apt_sources::{self, Mirrors};
use crate::{namespace, packages, run, wants_help, workspace};

/// The release that the trees are of.
const RELEASE: &str = "bookworm";

/// The release after it.
const NEXT_RELEASE: &str = "trixie";

/// What both versions hold.
const PACKAGES: &str = "systemd,systemd-sysv,systemd-boot-efi,grub-pc-bin,linux-image-cloud-amd64,\
     openssh-server,python3,ca-certificates,udev,dbus,iproute2,e2fsprogs,kmod,passwd,procps";

/// What version 2 holds more: programs, and with chrony a service with a user of its own. Installed after
/// the rest, so that both versions count system users the same way: an image that renumbers its users
/// conflicts with the /etc of every machine that has them.
const MORE_PACKAGES: &str = r#"chroot "$1" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes --quiet --no-install-recommends htop tmux jq chrony"#;

/// What no tree needs to have on a machine. The last one would build an initramfs that `build` replaces.
const LEFT_OUT: [&str; 6] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/etc/kernel/postinst.d/initramfs-tools",
];

/// Has apt take the kernel, and nothing else, from backports.
const PREFER_BACKPORTS: &str = r#"mkdir -p "$1/etc/apt/preferences.d"
printf 'Package: linux-*\nPin: release n=bookworm-backports\nPin-Priority: 990\n' >"$1/etc/apt/preferences.d/backports""#;

const CUSTOMIZE: &str = include_str!("../assets/customize.sh");

const HELP: &str = "\
Usage: cargo xtask images

Makes the two Debian trees that the demo and the virtual machine tests use, unless they are there already,
and prints where they are. Delete target/demo to have them made again.
";

/// The two trees, and the key that opens a shell in both.
#[derive(Debug)]
pub(crate) struct Images {
    /// The older tree.
    pub(crate) first: Tree,
    /// The newer one.
    pub(crate) second: Tree,
    /// The key.
    pub(crate) key: KeyPair,
}

/// A root file system as a directory.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Where it is.
    pub(crate) path: PathBuf,
}

impl Tree {
    /// A command that sees the tree's owners as they are meant: for root any, for everyone else one in the
    /// user namespace in which the tree was made.
    pub(crate) fn reader(program: &Path) -> Command {
        if run::is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("unshare");
        command
            .args(["--map-root-user", "--map-auto", "--"])
            .arg(program);
        command
    }

    /// The release of the tree's only kernel.
    pub(crate) fn kernel(&self) -> Result<String> {
        let modules = self.path.join("usr/lib/modules");
        let mut names = fs::read_dir(&modules)
            .with_context(|| format!("listing {}", modules.display()))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<String>>>()?;
        match (names.pop(), names.pop()) {
            (Some(name), None) => Ok(name),
            _ => bail!("{} does not hold exactly one kernel", modules.display()),
        }
    }
}

/// `cargo xtask images`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    if wants_help(arguments, HELP) {
        return Ok(());
    }
    packages::require(&[packages::IMAGES, packages::namespace()])?;
    let images = Images::open_or_make()?;
    println!("version 1: {}", images.first.path.display());
    println!("version 2: {}", images.second.path.display());
    println!("ssh key:   {}", images.key.private.display());
    Ok(())
}

impl Images {
    /// Opens both trees, making what is missing.
    pub(crate) fn open_or_make() -> Result<Self> {
        namespace::require()?;
        let place = workspace::target("demo");
        fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
        let key = KeyPair::open_or_make(&place.join("id_ed25519"))?;
        let mirrors = Mirrors::of_this_machine()?;
        let first = Recipe::first(&mirrors, &key)?.open_or_make(&place)?;
        let second = Recipe::second(&mirrors, &key)?.open_or_make(&place)?;
        Ok(Self { first, second, key })
    }
}

/// Opens the tree of the next release, or makes it.
pub(crate) fn next_release(key: &KeyPair) -> Result<Tree> {
    let mirrors = Mirrors::of_this_machine()?;
    Recipe::next_release(&mirrors, key)?.open_or_make(&workspace::target("demo"))
}

/// Everything that decides what a tree will hold.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// What a person calls it.
    pub(crate) name: String,
    /// Arguments of mmdebstrap, without mode and target.
    pub(crate) arguments: Vec<String>,
}

impl Recipe {
    fn first(mirrors: &Mirrors, key: &KeyPair) -> Result<Self> {
        let mut arguments = common(PACKAGES);
        arguments.push(customize(1, key)?);
        arguments.extend(suite(&[source(&mirrors.archive, RELEASE)]));
        Ok(Self {
            name: "Debian 12 as released".to_owned(),
            arguments,
        })
    }

    fn second(mirrors: &Mirrors, key: &KeyPair) -> Result<Self> {
        let mut arguments = common(PACKAGES);
        arguments.push(format!("--setup-hook={PREFER_BACKPORTS}"));
        arguments.push(format!("--customize-hook={MORE_PACKAGES}"));
        arguments.push(customize(2, key)?);
        let mut sources = newest(mirrors);
        let backports = format!("{RELEASE}-backports");
        if carries(&mirrors.archive, &backports) {
            sources.push(source(&mirrors.archive, &backports));
        }
        arguments.extend(suite(&sources));
        Ok(Self {
            name: "Debian 12 as of today, with a newer kernel and more packages".to_owned(),
            arguments,
        })
    }

    /// The next release, with the packages of the first tree.
    fn next_release(mirrors: &Mirrors, key: &KeyPair) -> Result<Self> {
        let mut arguments = common(PACKAGES);
        arguments.push(customize(13, key)?);
        arguments.extend(suite_of(
            NEXT_RELEASE,
            &[source(&mirrors.archive, NEXT_RELEASE)],
        ));
        Ok(Self {
            name: "Debian 13".to_owned(),
            arguments,
        })
    }

    /// Opens the tree below `place`, or makes it.
    pub(crate) fn open_or_make(&self, place: &Path) -> Result<Tree> {
        let path = place.join(self.hash());
        if path.is_dir() {
            return Ok(Tree { path });
        }
        let started = Instant::now();
        println!("  making {} (mmdebstrap, a minute or two) …", self.name);
        let partial = path.with_extension("partial");
        remove(&partial)?;
        if run::is_root() {
            self.make_as_root(&partial)?;
        } else {
            self.make_in_a_namespace(&partial)?;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a cache: after a power cut the tree is made again"
        )]
        fs::rename(&partial, &path)
            .with_context(|| format!("moving {} into place", path.display()))?;
        println!("  made in {} s", started.elapsed().as_secs());
        Ok(Tree { path })
    }

    fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        for argument in &self.arguments {
            hasher.update(argument.as_bytes());
            hasher.update([0]);
        }
        let mut name = String::new();
        for byte in &hasher.finalize()[..8] {
            let _ = write!(name, "{byte:02x}");
        }
        name
    }

    fn make_as_root(&self, to: &Path) -> Result<()> {
        // mmdebstrap takes SUITE TARGET SOURCE…: the target stands between the last arguments.
        let at = self.position_of_target();
        run::output(
            Command::new("mmdebstrap")
                .args(["--mode=root", "--format=directory"])
                .args(&self.arguments[..at])
                .arg(to)
                .args(&self.arguments[at..]),
        )?;
        // Device nodes are the running system's business, and no peer of ours can store them.
        run::output(
            Command::new("find")
                .arg(to.join("dev"))
                .args(["-mindepth", "1", "-delete"]),
        )?;
        Ok(())
    }

    fn make_in_a_namespace(&self, to: &Path) -> Result<()> {
        let at = self.position_of_target();
        fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
        let mut tar = Command::new("mmdebstrap")
            .args(["--mode=unshare", "--format=tar", "--quiet"])
            .args(&self.arguments[..at])
            .arg("-")
            .args(&self.arguments[at..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting mmdebstrap")?;
        let stream = tar.stdout.take().context("mmdebstrap has no output")?;
        // Device nodes cannot be made in a namespace, and an image's /dev is empty anyway.
        let unpacked = run::passing(
            Tree::reader(Path::new("tar"))
                .args(["--extract", "--exclude=./dev/*", "--xattrs", "--directory"])
                .arg(to)
                .stdin(stream),
        );
        let status = tar.wait().context("waiting for mmdebstrap")?;
        if !status.success() {
            bail!("mmdebstrap failed: {status}");
        }
        unpacked
    }

    fn position_of_target(&self) -> usize {
        let options = self
            .arguments
            .iter()
            .take_while(|argument| argument.starts_with("--"));
        options.count() + 1
    }
}

/// The archive's newest state: the release, its updates and its security fixes.
pub(crate) fn newest(mirrors: &Mirrors) -> Vec<String> {
    let mut sources = vec![
        source(&mirrors.archive, RELEASE),
        source(&mirrors.archive, &format!("{RELEASE}-updates")),
    ];
    if let Some(security) = &mirrors.security {
        sources.push(source(security, &format!("{RELEASE}-security")));
    }
    sources
}

/// A line of sources.list.
pub(crate) fn source(mirror: &str, suite: &str) -> String {
    format!("deb {mirror} {suite} main")
}

/// The positional arguments: the release, and where it comes from.
pub(crate) fn suite(sources: &[String]) -> Vec<String> {
    suite_of(RELEASE, sources)
}

/// The positional arguments for another release.
pub(crate) fn suite_of(release: &str, sources: &[String]) -> Vec<String> {
    let mut arguments = vec![release.to_owned()];
    arguments.extend_from_slice(sources);
    arguments
}

/// Arguments that every tree of ours is made with.
fn common(packages: &str) -> Vec<String> {
    let mut arguments = bare(packages);
    arguments.extend(
        LEFT_OUT
            .iter()
            .map(|path| format!("--dpkgopt=path-exclude={path}")),
    );
    arguments
}

/// Arguments for a tree of `packages` with everything that they bring.
pub(crate) fn bare(packages: &str) -> Vec<String> {
    let mut arguments = vec![
        "--variant=minbase".to_owned(),
        // The tree is thrown away when anything fails: syncing each package protects nothing.
        "--dpkgopt=force-unsafe-io".to_owned(),
        format!("--include={packages}"),
    ];
    arguments.extend(
        apt_sources::reaching()
            .into_iter()
            .map(|line| format!("--aptopt={line}")),
    );
    arguments
}

fn customize(version: u8, key: &KeyPair) -> Result<String> {
    let key = key.public_line()?;
    Ok(format!(
        "--customize-hook=version={version} key='{}' registry={REGISTRY}\n{CUSTOMIZE}",
        key.trim()
    ))
}

/// Whether a mirror carries a suite; apt's own helper asks, because it knows the way.
fn carries(mirror: &str, suite: &str) -> bool {
    let Ok(scratch) = tempfile::tempdir() else {
        return false;
    };
    let url = format!("{}/dists/{suite}/Release", mirror.trim_end_matches('/'));
    run::output(
        Command::new("/usr/lib/apt/apt-helper")
            .args(["download-file", &url])
            .arg(scratch.path().join("Release")),
    )
    .is_ok()
}

/// Removes what an earlier run left, with the rights that made it.
pub(crate) fn remove(tree: &Path) -> Result<()> {
    if !tree.exists() {
        return Ok(());
    }
    run::passing(Tree::reader(Path::new("rm")).args(["-rf", "--"]).arg(tree))
}
