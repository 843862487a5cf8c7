//! The parsers, each with seeds from our own writers and with what must hold for what it accepts.

mod boot;
mod packages;
mod trees;

use anyhow::Result;
use bedplate_model::ImageName;
use bedplate_model::oci::Document;
use bedplate_model::record::Record;

/// A parser of strangers' bytes.
#[derive(Debug)]
pub(super) struct Parser {
    pub(super) name: &'static str,
    /// Inputs that it accepts.
    pub(super) seeds: fn() -> Result<Vec<Vec<u8>>>,
    /// Makes checksums right again, so that damage gets past the door.
    pub(super) repair: fn(&mut [u8]),
    /// Parses; panics where what was accepted does not hold what it should.
    pub(super) parse: fn(&[u8]),
}

/// All of them.
pub(super) const PARSERS: &[Parser] = &[
    Parser {
        name: "image-name",
        seeds: image_names,
        repair: leave,
        parse: image_name,
    },
    Parser {
        name: "manifest",
        seeds: manifests,
        repair: leave,
        parse: manifest,
    },
    Parser {
        name: "record",
        seeds: records,
        repair: leave,
        parse: record,
    },
    Parser {
        name: "boot-entry",
        seeds: boot::entries,
        repair: leave,
        parse: boot::entry,
    },
    Parser {
        name: "boot-files",
        seeds: boot::files,
        repair: leave,
        parse: boot::file,
    },
    Parser {
        name: "load-option",
        seeds: boot::load_options,
        repair: leave,
        parse: boot::load_option,
    },
    Parser {
        name: "package-texts",
        seeds: packages::texts,
        repair: leave,
        parse: packages::text,
    },
    Parser {
        name: "rpm-database",
        seeds: packages::databases,
        repair: leave,
        parse: packages::database,
    },
    Parser {
        name: "rpm-log",
        seeds: packages::logs,
        repair: leave,
        parse: packages::log,
    },
    Parser {
        name: "rpm-ndb",
        seeds: packages::ndbs,
        repair: leave,
        parse: packages::ndb,
    },
    Parser {
        name: "rpm-bdb",
        seeds: packages::bdbs,
        repair: leave,
        parse: packages::bdb,
    },
    Parser {
        name: "tar",
        seeds: trees::tars,
        repair: trees::repair_tar,
        parse: trees::tar,
    },
    Parser {
        name: "layer-table",
        seeds: trees::tables,
        repair: trees::unseal_table,
        parse: trees::table,
    },
    Parser {
        name: "erofs",
        seeds: trees::images,
        repair: leave,
        parse: trees::image,
    },
];

fn leave(_: &mut [u8]) {}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all parsers")]
fn image_names() -> Result<Vec<Vec<u8>>> {
    let digest = "0123456789abcdef".repeat(4);
    Ok(vec![
        b"demo/os:1".to_vec(),
        b"[::1]:5000/a/b__c-d:v1.2".to_vec(),
        format!("registry.test:5000/os@sha256:{digest}").into_bytes(),
        format!("localhost/os:stable@sha256:{digest}").into_bytes(),
    ])
}

fn image_name(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(name) = text.parse::<ImageName>() {
        let printed = name.to_string();
        assert_eq!(
            printed.parse().ok(),
            Some(name),
            "{printed} parses as another name"
        );
    }
}

fn manifests() -> Result<Vec<Vec<u8>>> {
    let descriptor = |kind: &str, size: u64| {
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{}", "ab".repeat(32)),
            "size": size,
            "annotations": {"dev.bedplate.compression": "zstd-3"},
        })
    };
    Ok(vec![
        serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", 700),
            "layers": [descriptor("layer.v1.tar+zstd", 90_000_000), descriptor("layer.v1.tar+gzip", 1)],
            "annotations": {"a": "b"},
        }))?,
        serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{}", "cd".repeat(32)),
                "size": 1200,
                "platform": {"architecture": "amd64", "os": "linux"},
            }],
        }))?,
    ])
}

fn manifest(input: &[u8]) {
    // Parsing is all: what it names is fetched by digest, and checked then.
    let _ = Document::parse(input);
}

fn records() -> Result<Vec<Vec<u8>>> {
    let deployment = |id: &str, state: &str| {
        serde_json::json!({
            "id": id, "sequence": 1, "image": "registry.test/os:stable",
            "root": format!("exact-1/v1-sha256-12:{}", "12".repeat(32)),
            "manifest": format!("sha256:{}", "34".repeat(32)), "version": "1",
            "title": "Debian", "kernel": "6.1.0-1-cloud-amd64",
            "vmlinuz": format!("sha256:{}", "56".repeat(32)),
            "initramfs": format!("sha256:{}", "78".repeat(32)),
            "kargs": ["quiet"], "state": state, "base": null, "created": 1,
        })
    };
    let record = serde_json::json!({
        "format": "bedplate-record", "version": 1, "required": [], "optional": [],
        "root_uuid": "6a1c0a3e-0000-4000-8000-000000000001",
        "deployments": [deployment("00000002", "trial"), deployment("00000001", "proven")],
        "default": "00000001",
        "intent": {"kind": "try", "deployment": "00000002"},
        "bad": [],
    });
    Ok(vec![serde_json::to_vec_pretty(&record)?])
}

fn record(input: &[u8]) {
    if let Ok(record) = Record::parse(input) {
        let printed = record.to_json();
        let again = Record::parse(&printed);
        assert!(
            again.is_ok_and(|again| again == record),
            "a record that was accepted is refused or changed when it is printed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parser_has_seeds_that_it_takes_without_a_panic() {
        for Parser {
            name, seeds, parse, ..
        } in PARSERS
        {
            let seeds = seeds().unwrap();
            assert!(!seeds.is_empty(), "{name}");
            for seed in &seeds {
                parse(seed);
            }
        }
    }

    #[test]
    fn the_seeds_are_accepted() {
        for seed in records().unwrap() {
            Record::parse(&seed).unwrap();
        }
        for seed in manifests().unwrap() {
            Document::parse(&seed).unwrap();
        }
        // Made by reading each seed of the tar parser.
        assert!(!trees::tables().unwrap().is_empty());
        for seed in trees::images().unwrap() {
            bedplate_store::erofs::read(&seed).unwrap();
        }
        for seed in image_names().unwrap() {
            std::str::from_utf8(&seed)
                .unwrap()
                .parse::<ImageName>()
                .unwrap();
        }
    }
}
