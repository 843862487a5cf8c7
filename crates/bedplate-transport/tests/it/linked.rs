//! What must not be linked into a program that runs in images of any distribution.

/// This test program links the whole client. In a static program the C library's resolver would load
/// modules of the image's own libc: names are resolved by `client::dns` alone.
#[test]
fn the_c_librarys_resolver_is_not_linked() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    // The name is put together here, so that the program does not hold it because of this test.
    let symbol = format!("\0{}{}\0", "getaddr", "info").into_bytes();
    assert!(
        !program.windows(symbol.len()).any(|window| window == symbol),
        "the symbol table names it"
    );
}
