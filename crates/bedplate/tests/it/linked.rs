//! What is linked into the program: it must run in any distribution's image.

use std::process::Command;

/// A static glibc crashes in these when its NSS modules are of another version.
const FORBIDDEN: [&str; 6] = [
    "getaddrinfo",
    "gethostbyname",
    "gethostbyname_r",
    "getpwnam",
    "getpwnam_r",
    "getpwuid_r",
];

#[test]
fn the_program_is_static_and_asks_no_name_service() {
    // nm is of binutils, as the linker that made the program.
    let output = Command::new("nm")
        .arg(env!("CARGO_BIN_EXE_bedplate"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let symbols: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').next_back())
        .collect();
    assert!(
        symbols.contains(&"malloc"),
        "the symbols were stripped, so this test would prove nothing"
    );
    for symbol in FORBIDDEN {
        assert!(!symbols.contains(&symbol), "{symbol} is linked");
    }
    let file = std::fs::read(env!("CARGO_BIN_EXE_bedplate")).unwrap();
    let loader = b"/lib64/ld-linux-x86-64.so.2\0";
    // The interpreter's path stands near the beginning of a dynamic program.
    assert!(
        !file[..4096]
            .windows(loader.len())
            .any(|window| window == loader),
        "the program needs a dynamic loader"
    );
}
