//! Registers the loader with the machine's firmware, so that it is started again after a kernel that did
//! not load.
//!
//! ```text
//! variables ─ observe ─→ bedplate_boot::firmware::plan ─→ options · BootOrder · what is left over
//!                        boot partition, loader, tries + 1
//! ```
//!
//! Invariant: a plan's steps are executed in their order, so that `BootOrder` never names an option that
//! is not there. A machine that has no such variables, or whose firmware takes no more, boots as before.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bedplate_boot::firmware::{
    self, BOOT_ORDER, EncodeError, HardDrive, Observed, Plan, PlanError, Step, Wanted, option_name,
    option_number, print_order,
};
use bedplate_boot::loader_update::{PRIMARY, Started, Version};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// Where Linux shows the firmware's variables.
pub const EFIVARS: &str = "/sys/firmware/efi/efivars";

/// The vendor of the variables that the specification itself defines (UEFI 2.10, 3.3).
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// The vendor of the variables that boot loaders set (the Boot Loader Interface).
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Kept without power, and readable by the loader and by us: what boot variables must be.
const ATTRIBUTES: [u8; 4] = 7_u32.to_le_bytes();

/// What is read of a variable at most; the firmware's own limit is far below.
const VALUE_MAX: u64 = 64 << 10;

/// The firmware's boot variables, by name. Values are without their attributes.
pub trait Variables {
    /// Lists the names.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Reads a variable, or `None` where it is not there.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Makes or replaces a variable, whole.
    fn write(&mut self, name: &str, value: &[u8]) -> io::Result<()>;
    /// Removes a variable.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}

/// What came of registering.
#[derive(Debug)]
pub enum Registered {
    /// The plan was executed. It is empty where all was there.
    Done(Plan),
    /// This machine's firmware has no variables, or takes none.
    Refused(RefusedError),
}

/// Registers the loader under `tries` + 1 options.
pub fn register(
    variables: &mut dyn Variables,
    partition: HardDrive,
    tries: u32,
) -> Result<Registered, RegisterError> {
    let observed = match observe(variables) {
        Ok(observed) => observed,
        Err(error) => return Ok(Registered::Refused(RefusedError::Read(error))),
    };
    let wanted = Wanted {
        partition,
        loader: format!("\\{}", PRIMARY.replace('/', "\\")),
        count: u16::try_from(tries).unwrap_or(u16::MAX).saturating_add(1),
    };
    let plan = firmware::plan(&observed, &wanted)?;
    for step in &plan.steps {
        let written = match step {
            Step::Option { number, option } => {
                variables.write(&option_name(*number), &option.encode()?)
            }
            Step::Order(order) => variables.write(BOOT_ORDER, &print_order(order)),
            Step::Remove(number) => variables.remove(&option_name(*number)),
        };
        if let Err(source) = written {
            let step = step.to_string();
            return Ok(Registered::Refused(RefusedError::Write { step, source }));
        }
    }
    Ok(Registered::Done(plan))
}

fn observe(variables: &dyn Variables) -> io::Result<Observed> {
    let mut options = BTreeMap::new();
    for name in variables.names()? {
        if let Some(number) = option_number(&name) {
            // Who is listed and not there was removed meanwhile.
            if let Some(value) = variables.read(&name)? {
                options.insert(number, value);
            }
        }
    }
    Ok(Observed {
        options,
        order: variables.read(BOOT_ORDER)?.unwrap_or_default(),
    })
}

/// The variables of the running machine: a directory with a file for each, `NAME-VENDOR`, that begins
/// with four bytes of attributes (the kernel's efivarfs).
#[derive(Clone, Debug)]
pub struct EfiVariables {
    directory: PathBuf,
}

impl EfiVariables {
    /// Those of a directory, which is [`EFIVARS`] but for tests.
    pub fn of(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Reads what the loader said of itself when it started this boot (the Boot Loader Interface).
    pub fn started(&self) -> Option<Started> {
        let text = |name: &str| {
            let file = File::open(self.directory.join(format!("{name}-{LOADER}"))).ok()?;
            let mut bytes = Vec::new();
            file.take(VALUE_MAX).read_to_end(&mut bytes).ok()?;
            let (units, _) = bytes.get(ATTRIBUTES.len()..)?.as_chunks::<2>();
            let units = units.iter().copied().map(u16::from_le_bytes);
            let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
            String::from_utf16(&units).ok()
        };
        Some(Started {
            path: text("LoaderImageIdentifier")?,
            version: Version::told(&text("LoaderInfo")?)?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}-{GLOBAL}"))
    }
}

impl Variables for EfiVariables {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let of_vendor = name.to_str().and_then(|name| name.strip_suffix(GLOBAL));
            names.extend(of_vendor.and_then(|name| Some(name.strip_suffix('-')?.to_owned())));
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(VALUE_MAX).read_to_end(&mut bytes)?;
        // A file without attributes was made, and its variable was never written.
        Ok(bytes.get(ATTRIBUTES.len()..).map(<[u8]>::to_vec))
    }

    fn write(&mut self, name: &str, value: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        let is_new = !path.exists();
        if !is_new {
            make_mutable(&path)?;
        }
        let bytes = [&ATTRIBUTES, value].concat();
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false) // one write replaces the variable; an emptied one would be removed
            .open(&path)?;
        let written = match file.write(&bytes) {
            Ok(length) if length == bytes.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) => Err(error),
        };
        if written.is_err() && is_new {
            // The name alone is no variable. Where it stays, the next boot does not see it.
            let _ = fs::remove_file(&path);
        }
        written
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        match make_mutable(&path).and_then(|()| fs::remove_file(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// Takes away the flag by which the kernel keeps `rm -rf` from breaking firmware.
fn make_mutable(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let flags = match ioctl_getflags(&file) {
        Ok(flags) => flags,
        // No such flags there, so none is set.
        Err(rustix::io::Errno::NOTTY | rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if flags.contains(IFlags::IMMUTABLE) {
        ioctl_setflags(&file, flags - IFlags::IMMUTABLE)?;
    }
    Ok(())
}

/// Why the firmware has no options of ours, although nothing is wrong with us.
#[derive(Debug, thiserror::Error)]
pub enum RefusedError {
    /// There are no variables.
    #[error("cannot read the firmware's variables")]
    Read(#[source] io::Error),
    /// The firmware or its file system takes no writes, or is full.
    #[error("cannot {step}")]
    Write {
        /// The step of the plan.
        step: String,
        /// Why.
        source: io::Error,
    },
}

/// Why registering failed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// There is no plan.
    #[error("cannot register the loader with the firmware")]
    Plan(#[from] PlanError),
    /// An option cannot be printed.
    #[error("cannot print a boot option")]
    Encode(#[from] EncodeError),
}

#[cfg(test)]
mod tests;
