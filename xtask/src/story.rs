//! x
pub(crate) enum Voice {
    Brief,
}
pub(crate) fn tell(_v: Voice, _k: bool) -> anyhow::Result<()> {
    Ok(())
}
pub(crate) fn require_packages() -> anyhow::Result<()> {
    Ok(())
}
