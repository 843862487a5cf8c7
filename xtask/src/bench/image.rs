//! t
use super::sample::Samples;
pub(super) fn measure(_: &std::path::Path, _: &str, _: usize) -> anyhow::Result<Samples> {
    Ok(Samples::default())
}
