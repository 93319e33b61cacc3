//! ServiceCIDRs.

use super::field::{Checked, cidr, refuse, service_range, usable};
use crate::model::{LeftOut, ServiceCidr, raw};

/// Validates a ServiceCIDR. Invalid ranges are left out.
pub(super) fn check(raw: raw::Manifest) -> Checked<ServiceCidr> {
    let range = |(i, text): (usize, &String)| {
        let field = format!("spec.cidrs[{i}]");
        let cidr = cidr(|| field.clone(), text)?;
        service_range(cidr).or_else(|reason| refuse(field, reason))
    };
    let mut left_out = LeftOut::default();
    let cidrs = raw.spec.cidrs.iter().enumerate().filter_map(|element| usable(range(element), &mut left_out)).collect();
    Ok(ServiceCidr { cidrs, left_out })
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use crate::model::Object;

    #[test]
    fn service_cidrs() {
        let object = |cidrs: &str| {
            parse(&format!(
                "{{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {{name: more}}, spec: {{cidrs: {cidrs}}}}}"
            ))
        };
        let (key, both) = object("[10.97.0.0/24, 'fd00:97::/112']").unwrap();
        assert_eq!(key.to_string(), "ServiceCIDR more");
        assert!(matches!(both, Object::ServiceCidr(ranges) if ranges.cidrs.len() == 2));
        for (cidrs, left_out) in [
            ("[10.97.0.0/24, 10.97.1.1/24]", ""),
            ("[10.97.0.0/24, 10.97.0.1/32]", "single"),
            ("[0.0.0.0/0, 10.97.0.0/24]", "not usable for services"),
            ("[x, 10.97.0.0/24]", "`x` is not a CIDR"),
        ] {
            let Object::ServiceCidr(ranges) = object(cidrs).unwrap().1 else { panic!() };
            assert!(ranges.cidrs.contains(&"10.97.0.0/24".parse().unwrap()), "{cidrs}");
            let named: Vec<_> = ranges.left_out.lines().collect();
            assert_eq!((ranges.cidrs.len(), named.len()), if left_out.is_empty() { (2, 0) } else { (1, 1) }, "{cidrs}");
            assert!(named.concat().contains(left_out), "{named:?}");
        }
    }
}
