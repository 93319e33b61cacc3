//! ServiceCIDRs.

use super::{Checked, cidr, refuse, service_range};
use crate::model::{ServiceCidr, raw};

/// A ServiceCIDR.
pub(super) fn check(raw: raw::Manifest) -> Checked<ServiceCidr> {
    let range = |(i, text): (usize, &String)| {
        let field = format!("spec.cidrs[{i}]");
        let cidr = cidr(|| field.clone(), text)?;
        service_range(cidr).or_else(|reason| refuse(field, reason))
    };
    Ok(ServiceCidr { cidrs: raw.spec.cidrs.iter().enumerate().map(range).collect::<Checked<_>>()? })
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
        assert_eq!(object("[10.97.0.0/24, 10.97.1.1/24]").unwrap_err().field, "spec.cidrs[1]");
        assert!(object("[10.97.0.1/32]").unwrap_err().reason.contains("single"));
        assert!(object("[0.0.0.0/0]").is_err() && object("[x]").is_err());
    }
}
