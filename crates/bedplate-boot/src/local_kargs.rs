//! Kernel arguments that were set on a machine: how they change those of its image, and how a person changes
//! them.
//!
//! ```text
//! image's arguments − what `delete` fits + `append` = arguments of the deployment
//! `delete`   A=1  quiet    this very argument      KEY   every argument of the key, with or without a value
//! ```
//!
//! Invariant: what is deleted of an image stays deleted in later ones; the order of what nobody touched is kept;
//! what names the root and the deployment is Bedplate's, and can be neither added nor taken away.

use bedplate_model::record::LocalKargs;

use crate::cmdline::{self, same_key};
use crate::kargs::is_argument;

/// The start of keys that are early boot's.
const PREFIX: &str = "bedplate.";
/// The key by which a kernel's boot stub would load one more initramfs.
const INITRD: &str = "initrd";

/// What a person wants to be different, in the order in which it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// Arguments, or keys of which every argument goes.
    pub delete: Vec<String>,
    /// Arguments that take the place of the one of their key.
    pub replace: Vec<String>,
    /// Arguments that come last.
    pub append: Vec<String>,
}

impl Edit {
    /// Returns whether nothing is to be different.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.replace.is_empty() && self.append.is_empty()
    }
}

/// Where an argument comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The image.
    Image,
    /// The image; it was deleted on this machine.
    Deleted,
    /// This machine.
    Local,
}

/// Why arguments cannot be changed so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Not one word.
    #[error("`{0}` is not one kernel argument")]
    Argument(String),
    /// It names what boots.
    #[error("`{0}` is Bedplate's own: it says what boots")]
    Owned(String),
    /// No such argument.
    #[error("there is no kernel argument `{0}`")]
    Missing(String),
    /// What is to be replaced has no value.
    #[error("`{0}` has no value; write KEY=VALUE")]
    NoValue(String),
    /// A word that is an argument, and the key of others.
    #[error("`{key}` could be any of {}", .fits.join(", "))]
    Ambiguous {
        /// The word.
        key: String,
        /// The arguments that it fits.
        fits: Vec<String>,
    },
    /// Several arguments have the key whose value is to be replaced.
    #[error("`{key}` is there more than once: {}", .fits.join(", "))]
    Several {
        /// The key.
        key: String,
        /// The arguments.
        fits: Vec<String>,
    },
}

/// Returns the arguments that a deployment has.
pub fn apply(image: &[String], local: &LocalKargs) -> Vec<String> {
    origins(image, local)
        .filter(|(_, origin)| *origin != Origin::Deleted)
        .map(|(argument, _)| argument.to_owned())
        .collect()
}

/// Returns every argument of an image and a machine, also those that were deleted, in their order.
pub fn origins<'a>(
    image: &'a [String],
    local: &'a LocalKargs,
) -> impl Iterator<Item = (&'a str, Origin)> {
    let deleted = |argument: &str| local.delete.iter().any(|wanted| fits(wanted, argument));
    let of_image = image.iter().map(move |argument| {
        let origin = if deleted(argument) {
            Origin::Deleted
        } else {
            Origin::Image
        };
        (argument.as_str(), origin)
    });
    let of_machine = local.append.iter();
    of_image.chain(of_machine.map(|argument| (argument.as_str(), Origin::Local)))
}

/// Changes what was set on a machine; `image` are the arguments of its image.
pub fn edit(image: &[String], local: &LocalKargs, edit: &Edit) -> Result<LocalKargs, EditError> {
    let mut local = local.clone();
    for wanted in &edit.delete {
        delete(image, &mut local, wanted)?;
    }
    for argument in &edit.replace {
        replace(image, &mut local, argument)?;
    }
    for argument in &edit.append {
        append(image, &mut local, argument)?;
    }
    Ok(local)
}

fn delete(image: &[String], local: &mut LocalKargs, wanted: &str) -> Result<(), EditError> {
    let there = present(image, local, |argument| fits(wanted, argument));
    if there.is_empty() {
        return Err(if is_owned(wanted) {
            EditError::Owned(shown(wanted))
        } else {
            EditError::Missing(shown(wanted))
        });
    }
    let flags = there.iter().filter(|argument| !argument.contains('='));
    if !wanted.contains('=') && (1..there.len()).contains(&flags.count()) {
        return Err(EditError::Ambiguous {
            key: shown(wanted),
            fits: there,
        });
    }
    local.append.retain(|argument| !fits(wanted, argument));
    if !present(image, local, |argument| fits(wanted, argument)).is_empty() {
        local.delete.push(wanted.to_owned());
    }
    Ok(())
}

fn replace(image: &[String], local: &mut LocalKargs, argument: &str) -> Result<(), EditError> {
    check(argument)?;
    if !argument.contains('=') {
        return Err(EditError::NoValue(shown(argument)));
    }
    let key = key(argument);
    let same = |other: &str| same_key(crate::local_kargs::key(other), key);
    let there = present(image, local, same);
    match &there[..] {
        [] => return Err(EditError::Missing(shown(key))),
        [old] if old == argument => return Ok(()),
        [_] => {}
        [_, _, ..] => {
            return Err(EditError::Several {
                key: shown(key),
                fits: there,
            });
        }
    }
    if let Some(old) = local.append.iter_mut().find(|other| same(other)) {
        argument.clone_into(old);
    } else {
        // Later images may have another value: it is the key that this machine sets.
        local.delete.push(key.to_owned());
        local.append.push(argument.to_owned());
    }
    Ok(())
}

fn append(image: &[String], local: &mut LocalKargs, argument: &str) -> Result<(), EditError> {
    check(argument)?;
    let same = |other: &str| same_key(key(other), key(argument));
    let before = present(image, local, |_| true);
    if !before.iter().any(|other| same(other)) {
        // What was deleted of the image and nothing else: it is the image's again.
        for position in 0..local.delete.len() {
            let mut restored = local.clone();
            restored.delete.remove(position);
            let after = present(image, &restored, |_| true);
            if after.len() == before.len() + 1 && after.iter().any(|other| other == argument) {
                *local = restored;
                return Ok(());
            }
        }
    }
    local.append.push(argument.to_owned());
    Ok(())
}

/// Returns the arguments of a deployment that are asked for.
fn present(image: &[String], local: &LocalKargs, asked: impl Fn(&str) -> bool) -> Vec<String> {
    let mut arguments = apply(image, local);
    arguments.retain(|argument| asked(argument));
    arguments
}

/// Checks that a person may add an argument.
fn check(argument: &str) -> Result<(), EditError> {
    // What follows `--` is for init, and what names the root comes last.
    if !is_argument(argument) || argument == "--" {
        return Err(EditError::Argument(shown(argument)));
    }
    if is_owned(argument) {
        return Err(EditError::Owned(shown(argument)));
    }
    Ok(())
}

/// Returns whether Bedplate alone sets an argument. `init=` is not among them, nor `panic=`, which an image may
/// change: what does not boot with them gives way.
pub fn is_owned(argument: &str) -> bool {
    let key = key(argument);
    same_key(key, cmdline::ROOT) || same_key(key, INITRD) || key.starts_with(PREFIX)
}

/// Returns whether an entry of `delete` means an argument.
fn fits(wanted: &str, argument: &str) -> bool {
    argument == wanted || (!wanted.contains('=') && same_key(key(argument), wanted))
}

/// Returns the key of an argument: all of a word without a value.
fn key(argument: &str) -> &str {
    let end = argument.find('=').unwrap_or(argument.len());
    argument[..end].trim_matches('"')
}

fn shown(text: &str) -> String {
    let text = bedplate_model::name::shown(text.as_bytes());
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn local(append: &str, delete: &str) -> LocalKargs {
        LocalKargs {
            append: words(append),
            delete: words(delete),
        }
    }

    fn deleting(text: &str) -> Edit {
        Edit {
            delete: words(text),
            ..Edit::default()
        }
    }

    fn replacing(text: &str) -> Edit {
        Edit {
            replace: words(text),
            ..Edit::default()
        }
    }

    fn appending(text: &str) -> Edit {
        Edit {
            append: words(text),
            ..Edit::default()
        }
    }

    #[test]
    fn what_was_deleted_stays_deleted_in_later_images() {
        let image = words("quiet console=tty0 console=ttyS0 a=1");
        let none = LocalKargs::default();
        let change = |change: Edit| edit(&image, &none, &change).unwrap();
        let exact = change(deleting("quiet console=ttyS0"));
        assert_eq!(apply(&image, &exact).join(" "), "console=tty0 a=1");
        let later = words("quiet console=ttyS0 console=ttyS1 b=1");
        assert_eq!(apply(&later, &exact).join(" "), "console=ttyS1 b=1");
        let key = change(deleting("console"));
        assert_eq!(apply(&later, &key).join(" "), "quiet b=1");
        let replaced = change(replacing("a=2"));
        assert_eq!(apply(&words("a=3 c=1"), &replaced).join(" "), "c=1 a=2");
    }

    #[test]
    fn what_is_local_is_changed_in_its_place() {
        let image = words("quiet");
        let before = local("a=1 b=1 c", "");
        let replaced = edit(&image, &before, &replacing("a=2")).unwrap();
        assert_eq!(replaced, local("a=2 b=1 c", ""));
        let deleted = edit(&image, &before, &deleting("b c")).unwrap();
        assert_eq!(deleted, local("a=1", ""));
        let same = edit(&image, &before, &replacing("a=1")).unwrap();
        assert_eq!(same, before);
    }

    #[test]
    fn what_was_deleted_of_the_image_is_brought_back_by_appending_it() {
        let image = words("quiet a=1 a=2");
        let without = edit(&image, &LocalKargs::default(), &deleting("quiet")).unwrap();
        let again = edit(&image, &without, &appending("quiet")).unwrap();
        assert_eq!(again, LocalKargs::default());
        // Where another one of the key is there, being last is the point.
        let without = edit(&image, &LocalKargs::default(), &deleting("a=1")).unwrap();
        let last = edit(&image, &without, &appending("a=1")).unwrap();
        assert_eq!(apply(&image, &last).join(" "), "quiet a=2 a=1");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let image = words("debug debug=2 a=1 a=2 bedplate.debug");
        let change = |change: Edit| edit(&image, &LocalKargs::default(), &change).unwrap_err();
        for text in [
            "root=/dev/sda",
            "bedplate.root=x",
            "bedplate.debug",
            "initrd=x",
        ] {
            assert!(
                matches!(change(appending(text)), EditError::Owned(_)),
                "{text}"
            );
        }
        assert!(matches!(change(deleting("root")), EditError::Owned(_)));
        assert!(matches!(change(replacing("root=x")), EditError::Owned(_)));
        assert!(matches!(change(deleting("b")), EditError::Missing(_)));
        assert!(matches!(change(replacing("b=1")), EditError::Missing(_)));
        assert!(matches!(change(replacing("a")), EditError::NoValue(_)));
        assert!(matches!(
            change(replacing("a=3")),
            EditError::Several { .. }
        ));
        assert!(matches!(
            change(deleting("debug")),
            EditError::Ambiguous { .. }
        ));
        for text in ["a b", "", "a=\"b", "a\nb", "--"] {
            let append = Edit {
                append: vec![text.to_owned()],
                ..Edit::default()
            };
            assert!(matches!(change(append), EditError::Argument(_)), "{text}");
        }
        // What an image brought of ours can go.
        assert!(edit(&image, &LocalKargs::default(), &deleting("bedplate.debug")).is_ok());
    }

    #[test]
    fn a_key_is_a_key_also_in_quotes_and_with_another_dash() {
        let image = vec!["\"a=1 2\"".to_owned(), "b_c=\"x y\"".to_owned()];
        let gone = edit(&image, &LocalKargs::default(), &deleting("a b-c")).unwrap();
        assert!(apply(&image, &gone).is_empty());
    }

    fn argument() -> impl Strategy<Value = String> {
        "[abc](=[12])?"
    }

    fn arguments() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec(argument(), 0..6)
    }

    fn one(argument: &str) -> Vec<String> {
        vec![argument.to_owned()]
    }

    /// What is left of `all` without those that a change may touch.
    fn untouched(all: &[String], touched: &str) -> Vec<String> {
        let other = |argument: &&String| key(argument) != key(touched);
        all.iter().filter(other).cloned().collect()
    }

    proptest! {
        #[test]
        fn appending_and_deleting_again_changes_nothing(
            image in arguments(), append in arguments(), deleted in arguments(), new in argument(),
        ) {
            let local = LocalKargs { append, delete: deleted };
            let before = apply(&image, &local);
            prop_assume!(!before.contains(&new));
            let with = Edit { append: one(&new), ..Edit::default() };
            let with = edit(&image, &local, &with).unwrap();
            let shown = apply(&image, &with);
            prop_assert_eq!(shown.len(), before.len() + 1);
            let without = Edit { delete: one(&new), ..Edit::default() };
            match edit(&image, &with, &without) {
                Ok(without) => prop_assert_eq!(apply(&image, &without), before),
                Err(EditError::Ambiguous { .. }) => prop_assert!(!new.contains('=')),
                Err(error) => prop_assert!(false, "{}", error),
            }
        }

        #[test]
        fn what_nobody_touched_keeps_its_order(
            image in arguments(), append in arguments(), deleted in arguments(), word in argument(),
        ) {
            let local = LocalKargs { append, delete: deleted };
            let before = apply(&image, &local);
            for change in [
                Edit { append: one(&word), ..Edit::default() },
                Edit { delete: one(&word), ..Edit::default() },
                Edit { replace: one(&word), ..Edit::default() },
            ] {
                // A change that makes no sense is refused, and that is all.
                if let Ok(changed) = edit(&image, &local, &change) {
                    let after = apply(&image, &changed);
                    prop_assert_eq!(untouched(&before, &word), untouched(&after, &word));
                }
            }
        }

        #[test]
        fn what_was_deleted_is_not_there_in_any_image(
            image in arguments(), later in arguments(), word in argument(),
        ) {
            let change = Edit { delete: one(&word), ..Edit::default() };
            if let Ok(local) = edit(&image, &LocalKargs::default(), &change) {
                prop_assert!(!apply(&image, &local).contains(&word));
                prop_assert!(!apply(&later, &local).contains(&word));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,20}", image in arguments()) {
            for change in [
                Edit { append: one(&text), ..Edit::default() },
                Edit { delete: one(&text), ..Edit::default() },
                Edit { replace: one(&text), ..Edit::default() },
            ] {
                let _ = edit(&image, &LocalKargs::default(), &change);
            }
        }
    }
}
