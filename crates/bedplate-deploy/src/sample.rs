//! Records and deployments for tests.

use bedplate_model::Sha256;
use bedplate_model::record::{Deployment, DeploymentId, EtcMode, OtherFields, Record, State};

/// Makes the id `nnnnnnnn`.
pub(crate) fn id(digit: u8) -> DeploymentId {
    DeploymentId([digit * 0x11; 4])
}

/// Makes a deployment; its digit is in its id, its sequence and its digests.
pub(crate) fn deployment(digit: u8, state: State, base: Option<u8>) -> Deployment {
    Deployment {
        id: id(digit),
        sequence: digit.into(),
        image: "example.org/os:stable".parse().unwrap(),
        root: format!("exact-1/v1-sha256-12:{}", format!("{digit:02x}").repeat(32))
            .parse()
            .unwrap(),
        manifest: Some(Sha256([digit; 32])),
        version: Some(digit.to_string()),
        title: format!("An OS {digit}"),
        kernel: format!("6.{digit}"),
        vmlinuz: Sha256([digit; 32]),
        initramfs: Sha256([digit; 32]),
        kargs: vec!["quiet".into()],
        state,
        reason: None,
        base: base.map(id),
        failure: None,
        failed_units: Vec::new(),
        created: 1_700_000_000,
        signature: None,
        local_kargs: None,
        pinned: false,
        etc: EtcMode::Merged,
        other: OtherFields::new(),
    }
}

/// Makes the record of a machine with one proven deployment.
pub(crate) fn record() -> Record {
    Record::new(
        "0b1c7a52-8f6e-4d0a-9a55-0d3b7f1f6a11".into(),
        deployment(1, State::Proven, None),
    )
}
