//! What the guide tells operators to type, for tests that hold it to its word.

/// The user with the least rights that SETUP_GUIDE.md makes, named `ethhook`, as an ACL file has it.
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
