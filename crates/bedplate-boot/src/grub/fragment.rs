//! A deployment as GRUB reads it: a piece of configuration that names itself and boots.
//!
//! ```text
//! set bedplate_title='…'                        for the menu
//! if [ "$bedplate_do" = boot ]; then            linux, then initrd, then boot; what fails goes on behind it
//! ```
//!
//! Invariant: nothing of an image or a person is code here: every word of theirs stands in single quotes.

use std::fmt::Write as _;

use crate::cmdline::Cmdline;
use crate::entry::{BootEntry, one_line};
use crate::loader::ArgumentError;

/// Prints an entry as a fragment.
pub(crate) fn fragment(entry: &BootEntry) -> Result<String, ArgumentError> {
    let line = Cmdline::parse(&entry.command_line());
    let mut linux = quoted(entry.linux.as_deref().unwrap_or_default());
    for word in line.words() {
        linux.push(' ');
        linux.push_str(&quoted(&plain_word(word)?));
    }
    let initrd: Vec<String> = entry.initrd.iter().map(|path| quoted(path)).collect();
    let mut text = String::from("# Made by bedplate, once.\n");
    let title = entry.title.as_deref().unwrap_or("Linux");
    let version = entry.version.as_deref().unwrap_or_default();
    let title = quoted(&one_line(&format!("{title} ({version})")));
    let _ = write!(
        text,
        "set bedplate_title={title}\n\
         if [ \"$bedplate_do\" = boot ]; then\n\
         \tif linux {linux}; then\n\
         \t\tif initrd {}; then boot; fi\n\
         \tfi\n\
         fi\n",
        initrd.join(" ")
    );
    Ok(text)
}

/// Returns an argument without the double quotes that hold it together: GRUB puts some around a word with
/// spaces, and the kernel takes them away wherever they stand. What else GRUB would change is refused.
pub(crate) fn plain_word(argument: &str) -> Result<String, ArgumentError> {
    if argument.contains(['\\', '\'']) {
        return Err(ArgumentError(bedplate_model::name::shown(
            argument.as_bytes(),
        )));
    }
    Ok(argument.replace('"', ""))
}

/// Puts a text into single quotes, within which GRUB's language knows nothing but their end.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(title: &str, options: &str) -> BootEntry {
        BootEntry {
            title: Some(title.to_owned()),
            version: Some("7".to_owned()),
            linux: Some("/EFI/bedplate/vmlinuz-01".to_owned()),
            initrd: vec!["/EFI/bedplate/initramfs-01.img".to_owned()],
            options: vec![options.to_owned()],
            ..BootEntry::default()
        }
    }

    #[test]
    fn a_fragment_names_kernel_arguments_and_initramfs() {
        let text = fragment(&entry("An OS", r#"quiet dyndbg="file a +p" root=x"#)).unwrap();
        assert_eq!(
            text,
            "# Made by bedplate, once.\n\
             set bedplate_title='An OS (7)'\n\
             if [ \"$bedplate_do\" = boot ]; then\n\
             \tif linux '/EFI/bedplate/vmlinuz-01' 'quiet' 'dyndbg=file a +p' 'root=x'; then\n\
             \t\tif initrd '/EFI/bedplate/initramfs-01.img'; then boot; fi\n\
             \tfi\n\
             fi\n"
        );
    }

    #[test]
    fn a_title_is_no_code() {
        let text = fragment(&entry("'; reboot; '\nhalt $(x) `y`", "a=$b;reboot")).unwrap();
        assert!(
            text.contains(r"bedplate_title=''\''; reboot; '\'' halt $(x) `y` (7)'"),
            "{text}"
        );
        assert!(text.contains(" 'a=$b;reboot';"), "{text}");
        assert_eq!(text.lines().count(), 7);
    }

    #[test]
    fn an_argument_that_grub_would_change_is_refused() {
        for argument in [r"a=\x20", "a='b'"] {
            let error = fragment(&entry("An OS", argument)).unwrap_err();
            assert!(error.to_string().contains("GRUB"), "{error}");
        }
    }
}
