//! `mount` and `umount`: an image as a directory, read-only. The mount holds the image against `gc`.

use std::path::Path;

use anyhow::Context as _;
use bedplate_model::layout;
use bedplate_store::{MountState, Pin, RefsError, Sealing};
use bedplate_sys::mount::{self, ImageMount, Unmount, Verity};

use crate::Answer;
use crate::blame::{Blame, Refusal};
use crate::cli::{Mount, Umount};
use crate::context::{Context, find_image};
use crate::mounts;
use crate::render::note;

pub(super) fn mount(arguments: &Mount, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store_as_it_is()?;
    let target = find_image(&store, &arguments.name)?.target;
    let attempted = || {
        format!(
            "cannot mount {} at {}",
            arguments.name,
            arguments.directory.display()
        )
    };
    let at = arguments.directory.canonicalize().with_context(attempted)?;
    if !at.is_dir() {
        return Err(Refusal::usage(
            format!("{}: {} is no directory", attempted(), at.display()),
            "name a directory that is there",
        )
        .into());
    }
    if mount::is_mount_point(&at).with_context(attempted)? {
        return Err(Refusal::usage(
            format!("{}: something is mounted there", attempted()),
            "`bedplate umount` takes an image off; or name another directory",
        )
        .into());
    }
    if arguments.verity && store.sealing() == Sealing::Unsealed {
        return Err(Refusal {
            blame: Blame::Host,
            message: format!("{}: the store is not sealed", attempted()),
            hint: Some(
                "--verity needs a file system with fs-verity; without it, fsck checks".into(),
            ),
        }
        .into());
    }
    // What the kernel does not check while it reads is checked once: the image, not the objects.
    if !arguments.verity {
        store.tree(&target.root).with_context(attempted)?;
    }
    let image = store.image_file(&target.root).with_context(attempted)?;
    let how = ImageMount {
        verity: if arguments.verity {
            Verity::Require
        } else {
            Verity::Off
        },
    };
    // Pinned first: a mount whose objects vanish is worse than a pin without a mount.
    let pin = Pin {
        name: pin_name(&at),
        root: target.root,
        manifest: target.manifest,
        config: target.config,
    };
    let mut hold = mounts::hold().with_context(attempted)?;
    apart(context, || store.pin_mount(&pin, &hold)).with_context(attempted)?;
    if let Err(error) = mount::mount_image(&image, store.objects_dir(), &at, &how) {
        apart(context, || store.unpin(&pin.name)).with_context(attempted)?;
        return Err(anyhow::Error::new(error).context(attempted()));
    }
    // Where this cannot be written, the pin holds until the next boot, or until `bedplate umount`.
    if let Ok(device) = mounts::device_at(&at) {
        hold.device = Some(device);
        let _ = apart(context, || store.pin_mount(&pin, &hold));
    }
    Ok(Answer::Yes)
}

pub(super) fn umount(arguments: &Umount, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let attempted = || format!("cannot unmount {}", arguments.directory.display());
    let at = arguments.directory.canonicalize().with_context(attempted)?;
    if !mount::is_mount_point(&at).with_context(attempted)? {
        if give_up(&at, context).with_context(attempted)? {
            note(&format!(
                "nothing is mounted at {} any more; the image that was is no longer held",
                at.display()
            ));
            return Ok(Answer::Yes);
        }
        return Err(Refusal::usage(
            format!("{}: nothing is mounted there", attempted()),
            "`findmnt` lists what is mounted where",
        )
        .into());
    }
    if !mount::is_image_mount(&at).with_context(attempted)? {
        return Err(Refusal::usage(
            format!(
                "{}: what is mounted there is no image of bedplate's",
                attempted()
            ),
            "`umount` takes off what others mounted",
        )
        .into());
    }
    mount::unmount(&at, Unmount::Now).with_context(attempted)?;
    if let Ok(store) = context.store_as_it_is() {
        apart(context, || store.unpin(&pin_name(&at))).with_context(attempted)?;
    }
    Ok(Answer::Yes)
}

/// Gives up the pin of a mount that somebody else took off; returns whether there was one.
fn give_up(at: &Path, context: &Context<'_>) -> anyhow::Result<bool> {
    let Ok(store) = context.store_as_it_is() else {
        return Ok(false);
    };
    let name = pin_name(at);
    if !store.pins()?.iter().any(|pin| pin.name == name) {
        return Ok(false);
    }
    let seen = mounts::see()?;
    let pins = store.mount_pins()?;
    let hold = pins.iter().find(|(pin, _)| pin.name == name);
    if hold.is_some_and(|(_, hold)| hold.state(&seen) == MountState::Mounted) {
        return Err(Refusal::usage(
            format!("it is mounted at {} for other processes only", at.display()),
            "take it off in their mount namespace: `nsenter -t PID -m`",
        )
        .into());
    }
    apart(context, || store.unpin(&name))?;
    Ok(true)
}

/// Changes the store. On a machine it is writable only among mounts of one's own, which a thread can
/// have for itself: what this program mounts is to be seen by everybody.
fn apart(
    context: &Context<'_>,
    change: impl FnOnce() -> Result<(), RefsError> + Send,
) -> anyhow::Result<()> {
    if !context.is_machine_store() {
        return Ok(change()?);
    }
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| -> anyhow::Result<()> {
            bedplate_deploy::host::enter_root(Path::new(layout::SYSROOT))?;
            Ok(change()?)
        });
        changing
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Returns the name by which a mount holds its image: one for each place.
fn pin_name(at: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let place = bedplate_store::verity::digest(
        bedplate_model::Algorithm::Sha256,
        at.as_os_str().as_bytes(),
    );
    format!("mount-{}", &place.to_hex()[..16])
}
