//! Machines from outside: installed to files; and the verbs over a simulated loader, with the power cut
//! at each write. What a machine does, it does with each loader.

/// The tests of everything that a machine does, with a loader.
macro_rules! machines {
    ($name:ident, $loader:expr) => {
        #[expect(clippy::duplicate_mod, reason = "the same tests with another loader")]
        #[path = "."]
        mod $name {
            /// What starts the machines.
            const LOADER: bedplate_boot::loader::Loader = $loader;

            mod cuts;
            mod deployments;
            mod etc_modes;
            mod health;
            mod kargs;
            pub(crate) mod life;
            pub(crate) mod simulated;
        }
    };
}

mod grub;
mod install;
machines!(with_grub, bedplate_boot::loader::Loader::Grub);
machines!(
    with_systemd_boot,
    bedplate_boot::loader::Loader::SystemdBoot
);
