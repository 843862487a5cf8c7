//! `cargo xtask campaign trees`: whole systems of several releases of Debian, against everybody who knows.
//!
//! ```text
//! tree ─ commit ─┬─ image  =  the composefs crate's, byte for byte; fsck.erofs and dump.erofs take it
//!                ├─ objects: their names  =  `fsverity digest`
//!                ├─ mount by the kernel  =  the tree (listing, contents, attributes, root digest)
//!                └─ export ─ GNU tar ─ commit  =  the same root digest
//! diff of two releases  =  the difference of what `dpkg-query` says
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::apt_sources::Mirrors;
use crate::images::{Recipe, Tree, bare, remove, source, suite_of};
use crate::{namespace, packages, programs, run, workspace};

/// The releases.
const RELEASES: [&str; 3] = ["bookworm", "trixie", "sid"];

/// What the trees have beside what every Debian has: capabilities, setuid programs, a user of its own.
const PACKAGES: &str = "iputils-ping,sudo,openssh-client,dbus";

/// How many objects of each tree are measured by `fsverity`.
const OBJECTS: usize = 300;

/// The test that compares an image with the composefs crate's.
const ORACLE: &str = "erofs::an_image_of_a_real_tree_equals_that_of_composefs";

/// A tree that was stored.
struct Stored {
    release: &'static str,
    tree: PathBuf,
    name: String,
    digest: String,
}

/// Runs the campaign once.
pub(crate) fn campaign() -> Result<()> {
    namespace::require()?;
    packages::require(&[packages::IMAGES, packages::TREES, packages::namespace()])?;
    let bench = Bench::new()?;
    let mirrors = Mirrors::of_this_machine()?;
    let mut stored = Vec::new();
    for release in RELEASES {
        let tree = recipe(release, &mirrors).open_or_make(&bench.place)?;
        let started = Instant::now();
        stored.push(bench.try_tree(release, tree.path)?);
        println!("  {release}: {} s", started.elapsed().as_secs());
    }
    for pair in stored.windows(2) {
        bench.try_difference(&pair[0], &pair[1])?;
    }
    run::output(bench.bedplate().arg("fsck")).context("fsck of the store")?;
    Ok(())
}

fn recipe(release: &'static str, mirrors: &Mirrors) -> Recipe {
    let mut sources = vec![source(&mirrors.archive, release)];
    if release != "sid" {
        sources.push(source(&mirrors.archive, &format!("{release}-updates")));
        let security = mirrors.security.iter();
        sources.extend(security.map(|mirror| source(mirror, &format!("{release}-security"))));
    }
    let mut arguments = bare(PACKAGES);
    arguments.extend(suite_of(release, &sources));
    Recipe {
        name: format!("a minimal Debian {release}"),
        arguments,
    }
}

/// The store that all trees go into, and room beside it.
struct Bench {
    place: PathBuf,
    program: PathBuf,
}

impl Bench {
    fn new() -> Result<Self> {
        let place = workspace::target("trees");
        fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
        let bench = Self {
            program: programs::build()?,
            place,
        };
        for directory in ["store", "copy"] {
            remove(&bench.place.join(directory))?;
        }
        Ok(bench)
    }

    /// `bedplate` on this campaign's store, with the rights that read the trees.
    fn bedplate(&self) -> Command {
        let mut command = Tree::reader(&self.program);
        command.arg("--store").arg(self.place.join("store"));
        command
    }

    fn try_tree(&self, release: &'static str, tree: PathBuf) -> Result<Stored> {
        let name = format!("trees:{release}");
        let line = |output: String| output.trim().to_owned();
        let digest = line(run::output(
            self.bedplate().arg("commit").arg(&tree).arg(&name),
        )?);
        let measured = line(run::output(self.bedplate().arg("digest").arg(&tree))?);
        ensure!(
            digest == measured,
            "{release}: commit says {digest}, digest says {measured}"
        );
        let stored = Stored {
            release,
            tree,
            name,
            digest,
        };
        println!("  {release}: {}", stored.digest);
        self.compare_image(&stored)?;
        self.compare_objects(&stored)?;
        if run::is_root() {
            self.compare_mount(&stored)?;
        } else {
            println!("  {release}: mounting left out: this is not root");
        }
        self.export_and_commit(&stored)?;
        Ok(stored)
    }

    /// The image against the composefs crate's, and against the programs of erofs-utils.
    fn compare_image(&self, stored: &Stored) -> Result<()> {
        let hex = stored.digest.rsplit(':').next().unwrap_or_default();
        let image = self.place.join("store/images").join(hex);
        // Read-only, and another's where the store was made in a namespace.
        let copy = self.place.join("image");
        let mut cat = Tree::reader(Path::new("cat"));
        let to = File::create(&copy).with_context(|| format!("creating {}", copy.display()))?;
        run::passing(cat.arg(&image).stdout(to))?;
        run::output(
            programs::cargo()
                .args(["test", "--release", "--locked", "--quiet"])
                .args(["--package", "bedplate-store", "--test", "it", "--"])
                .args(["--ignored", "--exact", ORACLE])
                .env("BEDPLATE_IMAGE", &copy),
        )
        .context("comparing with the composefs crate")?;
        run::output(Command::new("fsck.erofs").arg(&copy))?;
        for arguments in [&["-s"][..], &["--path=/usr/bin"], &["--path=/etc/passwd"]] {
            run::output(Command::new("dump.erofs").args(arguments).arg(&copy))?;
        }
        println!("  {}: the image is that of composefs", stored.release);
        Ok(())
    }

    /// Names of objects against `fsverity digest`.
    fn compare_objects(&self, stored: &Stored) -> Result<()> {
        let objects = self.place.join("store/objects");
        let listed = run::output(
            Tree::reader(Path::new("find"))
                .arg(&objects)
                .args(["-type", "f"]),
        )?;
        let mut paths: Vec<&str> = listed.lines().collect();
        paths.sort_unstable();
        let step = (paths.len() / OBJECTS).max(1);
        let sample: Vec<&str> = paths.iter().copied().step_by(step).collect();
        let measured = run::output(
            Tree::reader(Path::new("fsverity"))
                .args(["digest", "--compact"])
                .args(&sample),
        )?;
        let digests: Vec<&str> = measured.lines().collect();
        ensure!(digests.len() == sample.len(), "fsverity left some out");
        for (path, digest) in sample.iter().zip(digests) {
            let name: String = path
                .rsplit('/')
                .take(2)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect();
            ensure!(name == digest, "{path} has the digest {digest}");
        }
        println!(
            "  {}: {} of {} objects are named as fsverity names them",
            stored.release,
            sample.len(),
            paths.len()
        );
        Ok(())
    }

    /// What the kernel shows against the tree.
    fn compare_mount(&self, stored: &Stored) -> Result<()> {
        let mounted = self.place.join("mounted");
        fs::create_dir_all(&mounted).with_context(|| format!("creating {}", mounted.display()))?;
        run::output(self.bedplate().args(["mount", &stored.name]).arg(&mounted))?;
        let compared = self.compare_directories(stored, &mounted);
        let taken_off = run::output(self.bedplate().arg("umount").arg(&mounted));
        let [entries, attributes] = compared?;
        taken_off?;
        println!(
            "  {}: mounted, {entries} entries are the tree's, {attributes} with attributes",
            stored.release
        );
        Ok(())
    }

    /// Compares a directory with the tree, by programs that know nothing of us; then by our own digest.
    fn compare_directories(&self, stored: &Stored, directory: &Path) -> Result<[usize; 2]> {
        let (wanted, found) = (entries(&stored.tree)?, entries(directory)?);
        if let Some(difference) = first_difference(&wanted, &found) {
            bail!("{}: {difference}", directory.display());
        }
        let (attributes, others) = (attributes(&stored.tree)?, attributes(directory)?);
        if let Some(difference) = first_difference(&attributes, &others) {
            bail!("{}: {difference}", directory.display());
        }
        run::output(
            Command::new("diff")
                .args(["--recursive", "--no-dereference", "--brief"])
                .args([&stored.tree, directory]),
        )?;
        let digest = run::output(self.bedplate().arg("digest").arg(directory))?;
        ensure!(
            digest.trim() == stored.digest,
            "{} has the digest {digest}",
            directory.display()
        );
        Ok([wanted.len(), attributes.len()])
    }

    /// Through a tar and GNU tar, and back.
    fn export_and_commit(&self, stored: &Stored) -> Result<()> {
        let copy = self.place.join("copy");
        remove(&copy)?;
        fs::create_dir(&copy).with_context(|| format!("creating {}", copy.display()))?;
        let mut export = self
            .bedplate()
            .args(["export", &stored.name])
            .stdout(Stdio::piped())
            .spawn()
            .context("starting bedplate export")?;
        let stream = export.stdout.take().context("export has no output")?;
        run::passing(
            Tree::reader(Path::new("tar"))
                .args(["--extract", "--preserve-permissions", "--numeric-owner"])
                .args(["--xattrs", "--xattrs-include=*", "--directory"])
                .arg(&copy)
                .stdin(stream),
        )?;
        let status = export.wait().context("waiting for bedplate export")?;
        ensure!(status.success(), "bedplate export: {status}");
        let again = format!("copies:{}", stored.release);
        let digest = run::output(self.bedplate().arg("commit").arg(&copy).arg(&again))?;
        ensure!(
            digest.trim() == stored.digest,
            "{}: through GNU tar it has the digest {digest}",
            stored.release
        );
        println!("  {}: the same after GNU tar", stored.release);
        remove(&copy)
    }

    /// The packages that differ against what dpkg says of both trees.
    fn try_difference(&self, from: &Stored, to: &Stored) -> Result<()> {
        let (old, new) = (dpkg(&from.tree)?, dpkg(&to.tree)?);
        let mut wanted = BTreeMap::new();
        for name in old.keys().chain(new.keys()) {
            let pair = (old.get(name).cloned(), new.get(name).cloned());
            if pair.0 != pair.1 {
                wanted.insert(name.clone(), pair);
            }
        }
        let pairs: [[&std::ffi::OsStr; 2]; 2] = [
            [from.name.as_ref(), to.name.as_ref()],
            [from.tree.as_ref(), to.tree.as_ref()],
        ];
        for pair in pairs {
            let mut command = self.bedplate();
            // 1 is the answer that they differ.
            let output = command
                .args(["diff", "--json"])
                .args(pair)
                .output()
                .context("starting bedplate diff")?;
            ensure!(
                matches!(output.status.code(), Some(0 | 1)),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let difference: serde_json::Value =
                serde_json::from_slice(&output.stdout).context("reading what diff printed")?;
            let changes = difference["packages"]
                .as_array()
                .context("diff says nothing of packages")?;
            let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
            let found: BTreeMap<_, _> = changes
                .iter()
                .filter_map(|it| Some((text(&it["name"])?, (text(&it["from"]), text(&it["to"])))))
                .collect();
            ensure!(
                found == wanted && changes.len() == wanted.len(),
                "{} to {}: diff says {found:?}, dpkg-query {wanted:?}",
                from.release,
                to.release
            );
        }
        println!(
            "  {} to {}: {} packages differ, as dpkg-query says",
            from.release,
            to.release,
            wanted.len()
        );
        Ok(())
    }
}

/// What dpkg says is installed: versions by name, with the architecture where one name is there twice.
fn dpkg(tree: &Path) -> Result<BTreeMap<String, String>> {
    let listed = run::output(
        Command::new("dpkg-query")
            .arg(format!("--admindir={}/var/lib/dpkg", tree.display()))
            .args([
                "--show",
                "--showformat=${db:Status-Status} ${Package} ${Architecture} ${Version}\\n",
            ]),
    )?;
    let mut packages: Vec<[&str; 3]> = Vec::new();
    for line in listed.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["installed", name, architecture, version] = words[..] {
            packages.push([name, architecture, version]);
        }
    }
    let twice = |name: &str| packages.iter().filter(|[other, ..]| *other == name).count() > 1;
    let keyed = packages.iter().map(|[name, architecture, version]| {
        let key = if twice(name) {
            format!("{name}:{architecture}")
        } else {
            (*name).to_owned()
        };
        (key, (*version).to_owned())
    });
    Ok(keyed.collect())
}

/// Type, mode, owner, links, time, size and target of every entry.
fn entries(directory: &Path) -> Result<Vec<String>> {
    // The size and links of a directory are its file system's business.
    let listed = run::output(
        Command::new("find")
            .arg(directory)
            .args(["-type", "d", "-printf", "/%P %y %m %U:%G %T@\\n", "-o"])
            .args(["-printf", "/%P %y %m %U:%G %s %n %T@ %l\\n"]),
    )?;
    let mut lines: Vec<String> = listed.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    Ok(lines)
}

/// The extended attributes of every entry that has some.
fn attributes(directory: &Path) -> Result<Vec<String>> {
    let dumped = run::output(
        Command::new("getfattr")
            .args(["--recursive", "--physical", "--no-dereference", "--dump"])
            .args(["--match=-", "--encoding=hex", "."])
            .current_dir(directory),
    )?;
    let mut blocks: Vec<String> = dumped.split("\n\n").map(str::to_owned).collect();
    blocks.retain(|block| !block.trim().is_empty());
    blocks.sort_unstable();
    Ok(blocks)
}

fn first_difference(wanted: &[String], found: &[String]) -> Option<String> {
    let differs = wanted.iter().zip(found).find(|(one, other)| one != other);
    match differs {
        Some((one, other)) => Some(format!("`{other}` instead of `{one}`")),
        None if wanted.len() != found.len() => Some(format!(
            "{} entries instead of {}",
            found.len(),
            wanted.len()
        )),
        None => None,
    }
}
