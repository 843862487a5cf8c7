//! Package databases that lie: a diff of two images reads what their makers wrote.

use bedplate_store::diff::{Package, ParsePackagesError, parse_apk_installed, parse_dpkg_status};

type Parse = fn(&[u8]) -> Result<Vec<Package>, ParsePackagesError>;

const PARSERS: [(Parse, &str); 2] = [
    (
        parse_dpkg_status,
        "Package: NAME\nStatus: install ok installed\nVersion: VERSION\nArchitecture: all\n\n",
    ),
    (parse_apk_installed, "P:NAME\nV:VERSION\nA:noarch\n\n"),
];

fn paragraph(template: &str, name: &str, version: &str) -> String {
    template.replace("NAME", name).replace("VERSION", version)
}

#[test]
fn names_and_versions_cannot_speak_to_a_terminal_and_are_short() {
    for (parse, template) in PARSERS {
        let long = "9".repeat(1 << 22);
        let text = paragraph(template, "\x1b[2Jcls\x07\u{202e}", &long);
        let packages = parse(text.as_bytes()).unwrap();
        let shown = packages
            .iter()
            .map(|package| format!("{} {}", package.name, package.version));
        for line in shown {
            assert!(line.len() < 2000, "{} bytes", line.len());
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }
}

#[test]
fn more_packages_than_can_be_and_lines_without_end_are_errors() {
    for (parse, template) in PARSERS {
        let text: String = (0..1_000_001)
            .map(|number| paragraph(template, &number.to_string(), "1"))
            .collect();
        assert_eq!(parse(text.as_bytes()), Err(ParsePackagesError::TooMany));
        let endless = vec![b'x'; 64 << 20];
        let error = parse(&endless).unwrap_err();
        assert!(error.to_string().len() < 1000);
        // Nothing but zeros, nothing but line ends, and nothing.
        assert!(parse(&[0; 4096]).is_err());
        assert_eq!(parse(&[b'\n'; 1 << 20]), Ok(Vec::new()));
        assert_eq!(parse(b""), Ok(Vec::new()));
    }
}

#[test]
fn a_package_twice_is_there_twice_and_half_a_package_is_an_error() {
    for (parse, template) in PARSERS {
        let twice = paragraph(template, "a", "1") + &paragraph(template, "a", "2");
        assert_eq!(parse(twice.as_bytes()).unwrap().len(), 2);
        let half = paragraph(template, "a", "1")
            .replace("Version: 1\n", "")
            .replace("V:1\n", "");
        let error = parse(half.as_bytes()).unwrap_err();
        assert!(matches!(error, ParsePackagesError::Field { .. }), "{error}");
    }
}
