//! The whole way: a directory into a store, an image of it, and a pull over the loopback.

use std::process::Command;

use anyhow::Result;

use super::report::{Report, Row, Target};
use super::sample::Samples;
use super::{Bench, NAME, image, remove, root_of};
use crate::registry::Registry;
use crate::run;

/// Measures all of it.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let first = vec![
        Target::Wall(0.6),
        Target::Cpu(0.5),
        Target::PeakMegabytes(200),
    ];
    bench.commit_twice(report, Vec::new(), [first, Vec::new()])?;
    bench.image(report)?;
    bench.pull(report)
}

impl Bench {
    /// The EROFS image of a tree whose objects are all in the store.
    fn image(&self, report: &mut Report) -> Result<()> {
        let path = self.store(0);
        let root = root_of(self, &path, NAME)?;
        report.add(Row {
            what: "EROFS image of v1, objects present",
            ours: image::measure(&path, &root, self.times.max(3))?,
            peer: None,
            targets: vec![Target::Seconds(0.5)],
        });
        Ok(())
    }

    /// An image from a registry on the loopback: for us into an empty store, for the peers into an OCI
    /// layout and from there to a directory.
    fn pull(&self, report: &mut Report) -> Result<()> {
        let registry = Registry::start(
            &mut self.ours(&self.store(0)),
            &self.registry(),
            &self.place.join("registry.log"),
        )?;
        let names = ["gzip", "zstd"].map(|compression| {
            (
                compression,
                format!("127.0.0.1:{}/bench/{compression}:v1", registry.port()),
            )
        });
        for (compression, name) in &names {
            run::output(
                self.ours(&self.store(0))
                    .args(["push", "--tls-verify=false"])
                    .arg(format!("--compression={compression}"))
                    .args([NAME, name]),
            )?;
        }
        let [(_, gzip), (_, zstd)] = names;
        let (mut same, mut own, mut theirs) =
            (Samples::default(), Samples::default(), Samples::default());
        for run in 0..self.times {
            for (samples, name) in [(&mut same, &gzip), (&mut own, &zstd)] {
                let compression = if name == &gzip { "gzip" } else { "zstd" };
                let store = self.fresh(compression, run);
                let mut pull = self.ours(&store);
                pull.args(["pull", "--tls-verify=false", name]);
                self.settle(&self.registry())?;
                samples.take("bedplate pull", &self.place, &mut pull)?;
                remove(&store)?;
            }
            self.pull_theirs(&mut theirs, run, &gzip)?;
        }
        let peer = || Some(("skopeo copy + umoci unpack, gzip", theirs.clone()));
        let targets = || vec![Target::Wall(0.3), Target::PeakMegabytes(200)];
        report.add(Row {
            what: "pull v1 over loopback, the very same gzip image",
            ours: same,
            peer: peer(),
            targets: targets(),
        });
        report.add(Row {
            what: "pull v1 over loopback, as Bedplate makes it (zstd)",
            ours: own,
            peer: peer(),
            targets: targets(),
        });
        Ok(())
    }

    fn pull_theirs(&self, samples: &mut Samples, run: usize, name: &str) -> Result<()> {
        let [layout, bundle] = ["layout", "bundle"].map(|what| self.fresh(what, run));
        let mut copy = Command::new("skopeo");
        copy.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
        ])
        .arg(format!("docker://{name}"))
        .arg(format!("oci:{}:v1", layout.display()));
        let mut unpack = Command::new("umoci");
        unpack
            .args(["unpack", "--image"])
            .arg(format!("{}:v1", layout.display()));
        if !run::is_root() {
            unpack.arg("--rootless");
        }
        unpack.arg(&bundle);
        self.settle(&self.registry())?;
        samples.take_sum(
            "skopeo copy, umoci unpack",
            &self.place,
            &mut [copy, unpack],
        )?;
        remove(&layout)?;
        remove(&bundle)
    }
}
