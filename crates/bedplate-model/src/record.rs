//! The record: the one truth about which deployments a machine has.
//!
//! ```text
//! Record ─┬─ deployments: [Deployment]     newest first
//!         ├─ default: id                   what boots next, once the intent is carried out
//!         ├─ intent: Option<Intent>        a change that was begun and not yet finished
//!         └─ bad: [BadVersion]             versions that failed here, and why
//! ```
//!
//! Invariants, checked when a record is parsed: ids are unique; `default` names a deployment of
//! the record; at least one deployment is proven, or it is the only one beside what is staged. `docs/format/record.md` is normative.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{RootDigest, Sha256, hex, serde_as_text, unhex};
use crate::format::{FormatError, FormatHeader};
use crate::image::ImageName;

/// The name of the record's format.
pub const FORMAT: &str = "bedplate-record";
/// The newest version of the record that this program knows.
pub const VERSION: u32 = 1;

/// Fields that this program does not know.
pub type OtherFields = serde_json::Map<String, serde_json::Value>;

/// The id of a deployment: eight hexadecimal digits, unique on its machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeploymentId(pub [u8; 4]);

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DeploymentId {
    type Err = ParseDeploymentIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        unhex(text).map(Self).ok_or_else(|| {
            ParseDeploymentIdError(
                crate::name::shown(text.as_bytes())
                    .chars()
                    .take(40)
                    .collect(),
            )
        })
    }
}

serde_as_text!(DeploymentId);

/// A text that is no deployment id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no deployment id (eight hexadecimal digits)")]
pub struct ParseDeploymentIdError(String);

/// The state of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Fetched and prepared while the machine ran; becomes the next to boot at shutdown.
    Staged,
    /// Has a boot entry with tries left, and was not proven yet.
    Trial,
    /// Passed its health gate. It stays bootable until it is removed.
    Proven,
    /// Failed its trial.
    Bad,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Staged => "staged",
            Self::Trial => "trial",
            Self::Proven => "proven",
            Self::Bad => "bad",
        })
    }
}

/// How a deployment comes by its /etc.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EtcMode {
    /// Its own directory: a copy of the image's, merged at each upgrade with what was changed here.
    #[default]
    Merged,
    /// The image's; what is written is gone with the next boot.
    Transient,
    /// The image's under a layer of what was written here; the layer goes on to the next deployment.
    Overlay,
    /// The image's, and nothing can be written.
    ReadOnly,
}

impl EtcMode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Merged, Self::Transient, Self::Overlay, Self::ReadOnly];

    /// Returns the word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Merged => "merged",
            Self::Transient => "transient",
            Self::Overlay => "overlay",
            Self::ReadOnly => "read-only",
        }
    }

    /// Returns whether what is changed in such an /etc goes on to the next deployment.
    pub const fn keeps_changes(self) -> bool {
        matches!(self, Self::Merged | Self::Overlay)
    }

    fn is_merged(&self) -> bool {
        *self == Self::Merged
    }
}

impl fmt::Display for EtcMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EtcMode {
    type Err = ParseEtcModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|mode| mode.name() == text)
            .ok_or_else(|| ParseEtcModeError(text.chars().take(40).collect()))
    }
}

/// A text that is no mode of /etc.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no mode of /etc: there are merged, transient, overlay and read-only")]
pub struct ParseEtcModeError(String);

/// One image, made bootable on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Its id.
    pub id: DeploymentId,
    /// Counts up over all deployments that the machine ever had: the larger, the newer.
    pub sequence: u64,
    /// Where the image came from, and where upgrades are looked for.
    pub image: ImageName,
    /// What the image is.
    pub root: RootDigest,
    /// The manifest it came with: what a bad version is remembered by.
    pub manifest: Option<Sha256>,
    /// The version that the image says of itself.
    pub version: Option<String>,
    /// What a boot menu calls it.
    pub title: String,
    /// The kernel's release: a directory below `/usr/lib/modules`.
    pub kernel: String,
    /// The SHA-256 of the kernel: its name on the boot partition.
    pub vmlinuz: Sha256,
    /// The SHA-256 of the initramfs: its name on the boot partition.
    pub initramfs: Sha256,
    /// Kernel arguments besides those that name the root and the deployment.
    pub kargs: Vec<String>,
    /// What of them was set on this machine; `None` where an older program made the deployment, and they are what
    /// the image does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_kargs: Option<LocalKargs>,
    /// Its state.
    pub state: State,
    /// Why it is in this state, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The deployment whose /etc this one's was merged from, and which boots again when it fails.
    pub base: Option<DeploymentId>,
    /// Why its health gate was not passed, the last time that it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The units that had failed when it was proven: later versions are not blamed for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_units: Vec<String>,
    /// When it was staged or installed, in seconds since 1970.
    pub created: i64,
    /// What checking a signature gave; `null` until a policy asks for one.
    #[serde(default)]
    pub signature: Option<serde_json::Value>,
    /// It stays until it is unpinned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// How it comes by its /etc.
    #[serde(default, skip_serializing_if = "EtcMode::is_merged")]
    pub etc: EtcMode,
    /// What a newer program wrote: it is kept.
    #[serde(flatten)]
    pub other: OtherFields,
}

/// Kernel arguments that were set on a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalKargs {
    /// Arguments that come after those of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub append: Vec<String>,
    /// Which arguments of images this machine does not want: whole ones, or keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delete: Vec<String>,
}

/// Why a deployment is not healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed, and how: one line.
    pub reason: String,
    /// The end of what it printed, at most 1024 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// A change of what boots next, written down before its commit point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Intent {
    /// `deployment` gets a boot entry with tries and becomes the default, on trial.
    Try {
        /// The deployment.
        deployment: DeploymentId,
    },
    /// `deployment`, which is proven, becomes the default.
    Select {
        /// The deployment.
        deployment: DeploymentId,
    },
}

/// A version that failed on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadVersion {
    /// The manifest of the image.
    pub manifest: Sha256,
    /// Why it failed.
    pub reason: String,
    /// The end of what the check that failed printed; only the newest bad versions keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// When that was seen, in seconds since 1970.
    pub seen: i64,
}

/// Which deployments a machine has, and what state each is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What a reader must understand.
    #[serde(flatten)]
    pub header: FormatHeader,
    /// The file system UUID of the physical root, for the boot entries.
    pub root_uuid: String,
    /// Every deployment, the newest first.
    pub deployments: Vec<Deployment>,
    /// What boots next.
    pub default: DeploymentId,
    /// A change that was begun and not yet finished.
    #[serde(default)]
    pub intent: Option<Intent>,
    /// Versions that are not to be staged again.
    #[serde(default)]
    pub bad: Vec<BadVersion>,
    /// What a newer program wrote: it is kept.
    #[serde(flatten)]
    pub other: OtherFields,
}

impl Record {
    /// Makes the record of a machine that was just installed.
    pub fn new(root_uuid: String, first: Deployment) -> Self {
        Self {
            header: FormatHeader::new(FORMAT, VERSION),
            root_uuid,
            default: first.id,
            deployments: vec![first],
            intent: None,
            bad: Vec::new(),
            other: OtherFields::new(),
        }
    }

    /// Parses a record and checks its invariants.
    ///
    /// White space after the document is allowed: records lie in slots of a fixed size.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseRecordError> {
        let header: FormatHeader = serde_json::from_slice(bytes)?;
        header.check(FORMAT, VERSION, &[])?;
        let record: Self = serde_json::from_slice(bytes)?;
        record.check()?;
        Ok(record)
    }

    /// Prints the record as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a record has only text keys");
        bytes.push(b'\n');
        bytes
    }

    /// Returns a deployment by its id.
    pub fn deployment(&self, id: DeploymentId) -> Option<&Deployment> {
        self.deployments
            .iter()
            .find(|deployment| deployment.id == id)
    }

    /// Returns a deployment by its id, to be changed.
    pub fn deployment_mut(&mut self, id: DeploymentId) -> Option<&mut Deployment> {
        self.deployments
            .iter_mut()
            .find(|deployment| deployment.id == id)
    }

    /// Returns the sequence number for the next deployment.
    pub fn next_sequence(&self) -> u64 {
        self.deployments
            .iter()
            .map(|deployment| deployment.sequence)
            .max()
            .map_or(1, |last| last + 1)
    }

    fn check(&self) -> Result<(), ParseRecordError> {
        let mut ids: Vec<_> = self
            .deployments
            .iter()
            .map(|deployment| deployment.id)
            .collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ParseRecordError::Twice(pair[0]));
        }
        if self.deployment(self.default).is_none() {
            return Err(ParseRecordError::NoDefault(self.default));
        }
        // What is staged has no boot entry, so the first installation may wait for its gate beside it.
        let bootable = |deployment: &&Deployment| deployment.state != State::Staged;
        let proven = self
            .deployments
            .iter()
            .any(|deployment| deployment.state == State::Proven);
        if !proven && self.deployments.iter().filter(bootable).count() > 1 {
            return Err(ParseRecordError::NothingProven);
        }
        Ok(())
    }
}

/// Why a record was refused.
#[derive(Debug, thiserror::Error)]
pub enum ParseRecordError {
    /// Not JSON, or a field is missing or wrong.
    #[error("the record is not valid")]
    Json(#[from] serde_json::Error),
    /// Of another kind, or of a newer version.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Two deployments have one id.
    #[error("the record has deployment {0} twice")]
    Twice(DeploymentId),
    /// The default is not there.
    #[error("the record's default {0} is none of its deployments")]
    NoDefault(DeploymentId),
    /// There is more than one deployment that could boot, and none is proven.
    #[error("the record has no proven deployment")]
    NothingProven,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn deployment(id: u8, state: State) -> Deployment {
        Deployment {
            id: DeploymentId([id; 4]),
            sequence: id.into(),
            image: "example.org/os:stable".parse().unwrap(),
            root: format!("exact-1/v1-sha256-12:{}", "1".repeat(64))
                .parse()
                .unwrap(),
            manifest: None,
            version: Some("12.1".into()),
            title: "An OS".into(),
            kernel: "6.1.0".into(),
            vmlinuz: Sha256([2; 32]),
            initramfs: Sha256([3; 32]),
            kargs: vec!["quiet".into()],
            local_kargs: Some(LocalKargs::default()),
            state,
            reason: None,
            base: None,
            failure: None,
            failed_units: Vec::new(),
            created: 0,
            signature: None,
            pinned: false,
            etc: EtcMode::Merged,
            other: OtherFields::new(),
        }
    }

    #[test]
    fn a_record_prints_as_it_parses_also_from_a_padded_slot() {
        let mut record = Record::new("uuid".into(), deployment(1, State::Proven));
        record.deployments.insert(0, deployment(2, State::Staged));
        record.intent = Some(Intent::Try {
            deployment: DeploymentId([2; 4]),
        });
        let mut bytes = record.to_json();
        bytes.resize(16384, b'\n');
        assert_eq!(Record::parse(&bytes).unwrap(), record);
    }

    #[test]
    fn a_record_that_could_leave_a_machine_without_a_system_is_refused() {
        let mut record = Record::new("uuid".into(), deployment(1, State::Trial));
        assert!(
            Record::parse(&record.to_json()).is_ok(),
            "the only one need not be proven"
        );
        record.deployments.push(deployment(2, State::Staged));
        assert!(
            Record::parse(&record.to_json()).is_ok(),
            "also while another one is staged"
        );
        record.deployments.pop();
        record.deployments.push(deployment(1, State::Proven));
        assert!(matches!(
            Record::parse(&record.to_json()),
            Err(ParseRecordError::Twice(_))
        ));
        record.deployments[1] = deployment(2, State::Trial);
        assert!(matches!(
            Record::parse(&record.to_json()),
            Err(ParseRecordError::NothingProven)
        ));
        record.deployments[1].state = State::Proven;
        record.default = DeploymentId([9; 4]);
        assert!(matches!(
            Record::parse(&record.to_json()),
            Err(ParseRecordError::NoDefault(_))
        ));
    }

    #[test]
    fn what_a_newer_program_wrote_is_kept() {
        let mut record = Record::new("uuid".into(), deployment(1, State::Proven));
        assert_eq!(Record::parse(&record.to_json()).unwrap(), record);
        record.other.insert("windows".into(), "nightly".into());
        let deployment = &mut record.deployments[0];
        deployment.other.insert("colour".into(), 7.into());
        deployment.pinned = true;
        let text = record.to_json();
        let parsed = Record::parse(&text).unwrap();
        assert_eq!(parsed, record);
        assert_eq!(parsed.to_json(), text);
    }

    #[test]
    fn a_newer_record_is_refused_by_version() {
        let mut record = Record::new("uuid".into(), deployment(1, State::Proven));
        record.header.version = 2;
        assert!(matches!(
            Record::parse(&record.to_json()),
            Err(ParseRecordError::Format(_))
        ));
    }
}
