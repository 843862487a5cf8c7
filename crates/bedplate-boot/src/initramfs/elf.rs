//! The part of a program that is ever loaded.
//!
//! ```text
//! header · program headers · segments … │ debug sections, symbols, section headers: left out
//! ```
//!
//! Invariant: whatever is no 64-bit little-endian ELF program comes out as it went in.

/// Where the header has the offset of the section headers.
const SECTIONS_AT: usize = 40;
/// Where the header has how many there are, and which one holds their names.
const SECTION_COUNT_AT: usize = 60;
const PT_LOAD: u32 = 1;

/// Cuts a program behind its last segment: an initramfs lies in memory, debug sections and all.
pub(super) fn loaded_part(program: &[u8]) -> Vec<u8> {
    let mut bytes = program.to_vec();
    if let Some(end) = end_of_segments(program) {
        bytes.truncate(end);
        bytes[SECTIONS_AT..SECTIONS_AT + 8].fill(0);
        bytes[SECTION_COUNT_AT..SECTION_COUNT_AT + 4].fill(0);
    }
    bytes
}

fn end_of_segments(program: &[u8]) -> Option<usize> {
    let number = |at: usize, length: usize| {
        let bytes = program.get(at..at.checked_add(length)?)?;
        let digits = bytes.iter().rev();
        usize::try_from(digits.fold(0, |sum, byte| sum << 8 | u64::from(*byte))).ok()
    };
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (headers, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut end = headers.checked_add(size.checked_mul(count)?)?;
    for index in 0..count {
        let header = headers.checked_add(size.checked_mul(index)?)?;
        if number(header, 4)? == PT_LOAD as usize {
            let (offset, length) = (number(header + 8, 8)?, number(header + 32, 8)?);
            end = end.max(offset.checked_add(length)?);
        }
    }
    (end >= 64 && end <= program.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_very_test_still_runs_without_what_is_cut() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let cut = loaded_part(&program);
        assert!(cut.len() < program.len(), "a test has debug sections");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cut");
        std::fs::write(&path, cut).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        let listed = std::process::Command::new(&path).arg("--list").output();
        match listed {
            Ok(output) => assert!(output.status.success()),
            // Where programs in the temporary directory may not run.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        }
    }

    proptest! {
        #[test]
        fn what_is_no_program_comes_out_as_it_went_in(rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(&loaded_part(&rest), &rest);
            let mut broken = b"\x7fELF\x02\x01".to_vec();
            broken.extend(&rest);
            prop_assert!(loaded_part(&broken).len() <= broken.len());
        }
    }
}
