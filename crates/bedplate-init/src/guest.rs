//! What early boot does in a virtual machine that takes orders from whoever runs it.
//!
//! ```text
//! bedplate.vm on the command line, and a port of that name
//!   → /run/bedplate/guest                this program, for the running system: see `agent`
//!   → /run/systemd/system/bedplate-vm*   units that start it
//! ```
//!
//! Nothing of the image takes part, so what is tested is the image as it is.
//!
//! Invariant: without the word on the command line no module is loaded and no port is looked for.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bedplate_boot::cmdline::Cmdline;
use bedplate_boot::guest::{CONSOLE, CONTROL_PORT, FLAG, FromGuest};

use crate::console::{self, Failure};
use crate::devices::Modules;

/// How long a port may take to appear after its driver was loaded.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to sleep between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// Where the program lies for the running system.
const PROGRAM: &str = "/run/bedplate/guest";
/// Where units of the running system lie that nothing keeps.
const UNITS: &str = "/run/systemd/system";
/// Where the kernel lists ports.
const PORTS: &str = "/sys/class/virtio-ports";

/// Takes orders once the system is up, as the health gate does: nothing waits for it, and it waits for all
/// that a boot ordinarily starts.
const SERVE: &str = "\
[Unit]
Description=Take orders from whoever runs this virtual machine
DefaultDependencies=no
After=basic.target multi-user.target
Before=shutdown.target
Conflicts=shutdown.target

[Service]
ExecStart=/run/bedplate/guest serve
KillMode=mixed
TimeoutStopSec=10
";

/// Says that the system gave up: nothing of what [`SERVE`] waits for comes then.
const LOST: &str = "\
[Unit]
Description=Tell whoever runs this virtual machine that it does not come up
DefaultDependencies=no
Before=shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=/run/bedplate/guest lost
";

/// Whoever has the console runs the machine, and has its disk, too: a password would protect nothing.
const AUTOLOGIN: &str = "\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM
";

/// A way to whoever runs this machine.
pub(crate) struct Guest(File);

impl Guest {
    /// Finds whoever runs this machine, where the command line says that they may give orders.
    pub(crate) fn found(cmdline: &Cmdline, modules: &Modules) -> Option<Self> {
        if !cmdline.flag(FLAG) {
            return None;
        }
        if let Err(failure) = provide(cmdline.value(FLAG).as_deref() == Some(CONSOLE)) {
            console::error(&failure.to_string());
        }
        modules.load_guest();
        let begun = Instant::now();
        loop {
            match open(CONTROL_PORT) {
                Ok(port) => {
                    let guest = Self(port);
                    guest.say(&FromGuest::Early);
                    return Some(guest);
                }
                Err(why) if begun.elapsed() >= PATIENCE => {
                    // A machine that nobody gives orders to boots as others do.
                    console::note(&format!(
                        "{FLAG}: cannot open the port {CONTROL_PORT}: {why}"
                    ));
                    return None;
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Says why the machine does not boot.
    pub(crate) fn failed(&self, failure: &Failure) {
        self.say(&FromGuest::Failed(format!("early boot: {failure}")));
    }

    fn say(&self, frame: &FromGuest) {
        if let Err(why) = frame.write(&mut &self.0) {
            console::note(&format!("cannot write to the port {CONTROL_PORT}: {why}"));
        }
    }
}

/// Opens a port by its name.
pub(crate) fn open(name: &str) -> io::Result<File> {
    let device = find(name)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no port of this name"))?;
    File::options().read(true).write(true).open(device)
}

fn find(name: &str) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(PORTS)? {
        let entry = entry?;
        // A port whose name is not known yet has no such file.
        let said = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if said.trim_end() == name {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

/// Puts the program and its units where the running system finds them.
fn provide(console: bool) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        if let Some(directory) = Path::new(PROGRAM).parent() {
            fs::create_dir_all(directory)?;
        }
        let mut copy = File::options()
            .write(true)
            .create_new(true)
            .mode(0o700)
            .open(PROGRAM)?;
        io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
        unit("bedplate-vm.service", SERVE, &["basic.target"])?;
        unit(
            "bedplate-vm-lost.service",
            LOST,
            &["emergency.target", "rescue.target"],
        )?;
        if console {
            let directory = Path::new(UNITS).join("serial-getty@ttyS0.service.d");
            directories(&directory)?;
            fs::write(directory.join("bedplate-vm.conf"), AUTOLOGIN)?;
        }
        Ok(())
    };
    write().map_err(|why| Failure::new("prepare for orders", why))
}

fn unit(name: &str, text: &str, wanted_by: &[&str]) -> io::Result<()> {
    let place = Path::new(UNITS);
    directories(place)?;
    fs::write(place.join(name), text)?;
    for target in wanted_by {
        let wants = place.join(format!("{target}.wants"));
        directories(&wants)?;
        symlink(place.join(name), wants.join(name))?;
    }
    Ok(())
}

/// Makes directories that everybody may read, whatever mask early boot was started with.
fn directories(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
