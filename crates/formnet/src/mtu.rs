//! How large a packet of the mesh may be.

/// What WireGuard puts around a packet, at most: 40 bytes of IPv6, 8 of UDP, 32 of its own.
const AROUND: u32 = 80;
/// Ethernet's.
const USUAL: u32 = 1500;
/// IPv6 promises it (RFC 8200, section 5).
const LEAST: u32 = 1280;

/// The mesh's MTU: what is configured, or else what `link`, the narrowest on the way to the other nodes, leaves.
pub(crate) fn of_mesh(configured: u32, link: Option<u32>) -> u32 {
    match configured {
        0 => link.unwrap_or(USUAL).saturating_sub(AROUND).clamp(LEAST, 65_535),
        configured => configured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wireguard_adds_fits_into_the_link() {
        assert_eq!(of_mesh(0, None), 1420);
        assert_eq!(of_mesh(0, Some(9000)), 8920);
        assert_eq!(of_mesh(0, Some(1300)), 1280, "IPv6 has to fit, and the outer packet is cut instead");
        assert_eq!(of_mesh(1350, Some(9000)), 1350);
    }
}
