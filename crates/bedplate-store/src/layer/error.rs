//! Why layers are refused, operation by operation.

use std::io;

use bedplate_model::TreePath;
use bedplate_model::name::NameError;

use crate::transaction::PutError;

/// Why a tar stream was not read as a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The source failed.
    #[error("cannot read the tar at byte {offset}")]
    Read {
        /// Where in the stream.
        offset: u64,
        /// What the source said.
        source: io::Error,
    },
    /// The stream ends inside a header or a body.
    #[error("the tar ends at byte {offset}, in the middle of a member")]
    Truncated {
        /// Where in the stream.
        offset: u64,
    },
    /// The stream ends behind a member, and does not say that this is all.
    #[error("the tar ends at byte {offset} without its end mark: something may be missing")]
    NoEnd {
        /// Where in the stream.
        offset: u64,
    },
    /// A header's checksum is wrong: this is no tar, or a damaged one.
    #[error("the tar header at byte {offset} has a wrong checksum")]
    Checksum {
        /// Where in the stream.
        offset: u64,
    },
    /// A number is malformed or out of its range.
    #[error("the tar member at byte {offset} has an impossible {field}")]
    Number {
        /// Where in the stream.
        offset: u64,
        /// Which number.
        field: &'static str,
    },
    /// A PAX header's records are malformed.
    #[error("the PAX header before byte {offset} is malformed")]
    Pax {
        /// Where in the stream.
        offset: u64,
    },
    /// Headers contradict each other, or stand where tools disagree on what they mean.
    #[error("the tar is ambiguous at byte {offset}: {what}")]
    Ambiguous {
        /// Where in the stream.
        offset: u64,
        /// What contradicts what.
        what: &'static str,
    },
    /// The path or the target of a link is no path below the root.
    #[error("the tar member at byte {offset} has an impossible {field}")]
    Path {
        /// Where in the stream.
        offset: u64,
        /// Path or link target.
        field: &'static str,
        /// Why it is none.
        source: NameError,
    },
    /// The path or the target of a link is longer than Linux allows.
    #[error("the tar member at byte {offset} has a {field} of more than {limit} bytes")]
    LongPath {
        /// Where in the stream.
        offset: u64,
        /// Path or link target.
        field: &'static str,
        /// How long it may be.
        limit: usize,
    },
    /// An extended attribute that no file can have.
    #[error("{path} in the tar has the extended attribute `{name}`, whose name {what}")]
    XattrName {
        /// The member.
        path: TreePath,
        /// The attribute, made printable.
        name: String,
        /// What is wrong with its name.
        what: &'static str,
    },
    /// An extended attribute with a value, or in a place, where no file system takes it.
    #[error("{path} in the tar has the extended attribute `{name}`, {what}")]
    XattrValue {
        /// The member.
        path: TreePath,
        /// The attribute, made printable.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An access list names somebody, and does not say which number that is.
    #[error("{path} in the tar has an access list that names somebody without a number")]
    NamesAlone {
        /// The member.
        path: TreePath,
    },
    /// An owner that system calls take for "leave it as it is": the file would stay root's.
    #[error("{path} in the tar has the {field} 4294967295, which is nobody's")]
    Nobody {
        /// The member.
        path: TreePath,
        /// Which number: uid or gid.
        field: &'static str,
    },
    /// A kind of member that no layer should have.
    #[error("{path} in the tar is {what}, which is not supported")]
    Unsupported {
        /// The member.
        path: TreePath,
        /// What it is.
        what: String,
    },
    /// What is said about the holes of a file cannot be.
    #[error("the sparse file {path} in the tar cannot be: {what}")]
    Sparse {
        /// The member.
        path: TreePath,
        /// What is wrong.
        what: &'static str,
    },
    /// Something is larger than any honest layer has it.
    #[error("the tar's {what} exceed the limit of {limit} at byte {offset}")]
    TooLarge {
        /// Where in the stream.
        offset: u64,
        /// What is too large, in the plural.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// No thread could be started to store bodies.
    #[error("cannot start a thread")]
    Threads(#[source] io::Error),
    /// A body could not be stored.
    #[error("cannot store the content of {path}")]
    Store {
        /// The file.
        path: TreePath,
        /// Why.
        source: PutError,
    },
}

/// Why a stored layer table was not understood.
#[derive(Debug, thiserror::Error)]
pub enum DecodeLayerError {
    /// It does not begin as layer tables begin.
    #[error("this is no layer table")]
    Magic,
    /// It needs something that this version does not know.
    #[error("the layer table needs features {0:#x}, which this version does not have")]
    Features(u32),
    /// Its parts do not fit together.
    #[error("the layer table is damaged: {0}")]
    Damaged(&'static str),
    /// The tar skeleton in it is not one that would have been accepted.
    #[error("the tar skeleton in the layer table is damaged")]
    Skeleton(#[source] LayerError),
}

/// Why a layer's original tar could not be written.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The layer does not parse again: it was not made by reading or decoding.
    #[error("the layer is damaged")]
    Layer(#[from] LayerError),
    /// A content could not be opened or read.
    #[error("cannot read the content of {path}")]
    Content {
        /// The file.
        path: TreePath,
        /// Why.
        source: io::Error,
    },
    /// A content has another length than the tar's header says.
    #[error("the content of {path} has {found} bytes instead of {wanted}")]
    WrongSize {
        /// The file.
        path: TreePath,
        /// The length in the header.
        wanted: u64,
        /// The length that came.
        found: u64,
    },
    /// The output failed.
    #[error("cannot write the tar")]
    Write(#[source] io::Error),
}

/// Why layers did not become a tree.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// The root is something else than a directory.
    #[error("layer {layer} makes the root something else than a directory")]
    Root {
        /// Which layer, from 0.
        layer: usize,
    },
    /// A whiteout that names nothing.
    #[error("layer {layer}: {path} is a whiteout of no name")]
    Whiteout {
        /// Which layer, from 0.
        layer: usize,
        /// The whiteout.
        path: TreePath,
    },
    /// A member lies below something that the same layer made no directory: tools would follow a
    /// symbolic link here, out of where the member says that it lies.
    #[error("layer {layer}: {path} lies below {parent}, which the same layer makes a {kind}")]
    ThroughFile {
        /// Which layer, from 0.
        layer: usize,
        /// The member.
        path: TreePath,
        /// What is no directory.
        parent: TreePath,
        /// What it is instead.
        kind: &'static str,
    },
    /// A hard link leads to nothing.
    #[error("layer {layer}: {path} is a hard link to {target}, which does not exist")]
    MissingTarget {
        /// Which layer, from 0.
        layer: usize,
        /// The link.
        path: TreePath,
        /// Where it leads.
        target: TreePath,
    },
    /// A hard link leads to a directory.
    #[error("layer {layer}: {path} is a hard link to {target}, which is a directory")]
    DirectoryTarget {
        /// Which layer, from 0.
        layer: usize,
        /// The link.
        path: TreePath,
        /// Where it leads.
        target: TreePath,
    },
    /// More nodes than any honest image has.
    #[error("the layers have more than {limit} files and directories")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Names need more directories than any honest image leaves out.
    #[error(
        "more than {limit} directories are missing in the layers, and only names of files need them"
    )]
    Implied {
        /// The limit.
        limit: usize,
    },
    /// The image has an SELinux policy, whose labels this version cannot compute.
    #[error(
        "the image has the SELinux policy `{policy}`, which cannot be applied yet; without its labels the system would be mislabelled"
    )]
    SelinuxPolicy {
        /// The name of the policy.
        policy: String,
    },
}

/// Why a tree was not written as a tar.
#[derive(Debug, thiserror::Error)]
pub enum WriteTarError {
    /// Tar has no sockets.
    #[error("{0} is a socket, which a tar cannot hold")]
    Socket(TreePath),
    /// The name means something else in a layer.
    #[error("{0} has the name of a whiteout, which a layer cannot hold")]
    WhiteoutName(TreePath),
    /// PAX has no way to write this attribute's name.
    #[error("the extended attribute `{name}` of {path} cannot be written in a tar")]
    XattrName {
        /// The node.
        path: TreePath,
        /// The attribute, made printable.
        name: String,
    },
    /// The path or a link's target is longer than a reader must take.
    #[error("{path}: its path or target has more than {limit} bytes, too many for {of}")]
    PathTooLong {
        /// The node.
        path: TreePath,
        /// How long it may be.
        limit: usize,
        /// What it may be that long in: a layer, or a tar.
        of: &'static str,
    },
    /// The path has more names than a reader must take.
    #[error("{path} lies more than {limit} directories deep, too many for a tar")]
    TooDeep {
        /// The node.
        path: TreePath,
        /// How many there may be.
        limit: usize,
    },
    /// An owner that system calls take for "leave it as it is": whoever unpacks the tar would own it.
    #[error("{path} has the {field} 4294967295, which is nobody's")]
    Nobody {
        /// The node.
        path: TreePath,
        /// Which number: uid or gid.
        field: &'static str,
    },
    /// Names and attributes of one node need more than a PAX header may hold.
    #[error("the extended attributes of {0} are too large for a tar")]
    TooLarge(TreePath),
    /// A content could not be opened or read.
    #[error("cannot read the content of {path}")]
    Content {
        /// The file.
        path: TreePath,
        /// Why.
        source: io::Error,
    },
    /// A content has another length than the tree says.
    #[error("the content of {path} has {found} bytes instead of {wanted}")]
    WrongSize {
        /// The file.
        path: TreePath,
        /// The length in the tree.
        wanted: u64,
        /// The length that came.
        found: u64,
    },
    /// The output failed.
    #[error("cannot write the tar")]
    Write(#[source] io::Error),
}
