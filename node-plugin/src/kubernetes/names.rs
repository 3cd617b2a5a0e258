//! Names of objects that become parts of a URL. Fact: Kubernetes, "Object Names and IDs": labels and
//! subdomains of RFC 1123.

/// Longest name of an object.
const NAME_MAX: usize = 253;

/// Whether most objects can be called so.
pub(crate) fn is_subdomain(name: &str) -> bool {
    name.len() <= NAME_MAX && name.split('.').all(is_label)
}

/// Whether it is one part of such a name, as namespaces are called.
pub(crate) fn is_label(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= NAME_MAX
        && name.starts_with(is_plain)
        && name.ends_with(is_plain)
        && name.chars().all(|c| is_plain(c) || c == '-')
}
