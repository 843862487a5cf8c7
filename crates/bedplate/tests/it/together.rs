//! Processes side by side on one store: commits, names, gc and fsck at once.

use crate::sandbox::Sandbox;

/// How often each process's verb runs: some seconds of work.
const ROUNDS: usize = 6;

#[test]
fn commits_names_gc_and_fsck_at_once_leave_a_whole_store() {
    let sandbox = Sandbox::new();
    for number in 0..3 {
        let tree = sandbox.tree(&format!("tree-{number}"));
        std::fs::write(tree.join("etc/own"), format!("{number}").repeat(1000)).unwrap();
    }
    sandbox.good("commit tree-0 os:base");
    std::thread::scope(|scope| {
        let sandbox = &sandbox;
        for writer in 0..2 {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let tree = (writer + round) % 3;
                    sandbox.good(&format!("commit tree-{tree} os:w{writer}"));
                    sandbox.good(&format!("tag os:w{writer} os:both team/os:w{writer}"));
                }
            });
        }
        scope.spawn(move || {
            for round in 0..ROUNDS {
                sandbox.good(["gc", "gc --keep 1"][round % 2]);
                sandbox.good("df");
            }
        });
        scope.spawn(move || {
            for _ in 0..ROUNDS {
                // What is removed while it is looked at is no damage.
                sandbox.good("fsck");
                sandbox.good("fsck --quick");
                sandbox.good("images");
            }
        });
    });
    sandbox.good("gc --keep 1");
    sandbox.good("fsck");
    for name in ["os:w0", "os:w1", "os:both", "team/os:w0", "os:base"] {
        sandbox.good(&format!("cat {name} etc/own"));
    }
    assert_eq!(sandbox.json("df --json")["store"]["staging_bytes"], 0);
}
