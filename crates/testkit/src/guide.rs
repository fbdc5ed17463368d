//! Commands from the guide for operators, for tests that check that they work.

/// The least-privileged user from SETUP_GUIDE.md, named `ethhook`, in the format of an ACL file.
#[must_use]
pub fn least_rights(password: &str) -> String {
    let guide = include_str!("../../../SETUP_GUIDE.md");
    let lines: Vec<_> = guide
        .lines()
        .map(str::trim)
        .skip_while(|line| !line.starts_with("ACL SETUSER ethhook"))
        .take_while(|line| !line.is_empty())
        .map(|line| line.trim_end_matches('\\').trim())
        .collect();
    lines.join(" ").replace("ACL SETUSER ", "").replace(">PASSWORD", &format!(">{password}"))
}
