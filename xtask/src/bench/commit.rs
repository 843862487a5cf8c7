//! Commit, and commit again with nothing changed: ours, ostree's, and what others make of the same tree,
//! in turn.

use anyhow::Result;

use super::peers::Rival;
use super::report::{Report, Row, Target};
use super::sample::Samples;
use super::{Bench, NAME, commit_theirs, make_repository, remove};

/// Whose repository ours is compared with.
pub(super) const OSTREE: &str = "ostree, bare repository";

impl Bench {
    /// Commits v1 into an empty store, and again with nothing changed; `rivals` take their turns. The
    /// stores of the last run stay for what follows, as number 0. The targets are the first commit's and
    /// the second one's.
    pub(super) fn commit_twice(
        &self,
        report: &mut Report,
        rivals: Vec<Rival>,
        targets: [Vec<Target>; 2],
    ) -> Result<()> {
        let mut samples: [Samples; 4] = Default::default();
        let [ours, ours_again, theirs, theirs_again] = &mut samples;
        let mut rivals: Vec<(Rival, Samples)> = rivals
            .into_iter()
            .map(|rival| (rival, Samples::default()))
            .collect();
        let tree = &self.trees.v1;
        for run in (0..self.times).rev() {
            let (store, repository) = (self.store(run), self.fresh("ostree", run));
            let mut command = self.commit_ours(&store, tree, NAME);
            self.settle(tree)?;
            ours.take("bedplate commit", &self.place, &mut command)?;
            ours_again.take("bedplate commit, again", &self.place, &mut command)?;

            make_repository(&repository)?;
            let mut command = commit_theirs(&repository, tree, "v1");
            self.settle(tree)?;
            theirs.take("ostree commit", &self.place, &mut command)?;
            theirs_again.take("ostree commit, again", &self.place, &mut command)?;

            for (rival, samples) in &mut rivals {
                if run == 0 || !rival.slow {
                    self.take_turn(rival, samples)?;
                }
            }
            if run > 0 {
                remove(&store)?;
                remove(&repository)?;
            }
        }
        let [ours, ours_again, theirs, theirs_again] = samples;
        let [first, again] = targets;
        report.add(Row {
            what: "commit v1 into an empty store",
            ours: ours.clone(),
            peer: Some((OSTREE, theirs)),
            targets: first,
        });
        for (rival, samples) in rivals {
            report.add(Row {
                what: rival.what,
                ours: ours.clone(),
                peer: Some((rival.name, samples)),
                targets: rival.targets,
            });
        }
        report.add(Row {
            what: "commit v1 again, unchanged",
            ours: ours_again,
            peer: Some((OSTREE, theirs_again)),
            targets: again,
        });
        Ok(())
    }
}
