//! What must not be linked into a program that runs in images of any distribution.

/// This test program links the whole client. In a static program the C library's resolver would load
/// modules of the image's own libc: names are resolved by `client::dns` alone.
#[test]
fn the_c_librarys_resolver_is_not_linked() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    // The names are put together here, so that the program does not hold them because of this test.
    for (one, two) in [
        ("getaddr", "info"),
        ("getpw", "nam_r"),
        ("gethost", "byname"),
    ] {
        let symbol = format!("\0{one}{two}\0").into_bytes();
        let linked = program.windows(symbol.len()).any(|window| window == symbol);
        assert!(!linked, "{one}{two} is linked");
    }
}
