//! Kinds that a server may lack: ServiceCIDR, and ClusterNetworkPolicy without its definition.

use anyhow::{Result, ensure};
use podnet::model::{Kind, ObjectKey};
use podnet_tests::api::{Abilities, Mood};
use podnet_tests::lab::wait_until;

use super::{Site, alone, cluster_policy, one_of_each};

#[test]
fn a_kind_is_read_once_its_definition_is_installed() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities { cluster_policies: false, ..Abilities::default() }, &one_of_each()[..3])?;
        site.until("all other kinds", |site| site.synced)?;
        let watched = |request: &String| {
            request.contains("/customresourcedefinitions?")
                && request.contains("metadata.name%3Dclusternetworkpolicies.policy.networking.k8s.io")
        };
        wait_until("a watch of the definition", || Ok(site.api.requests().iter().any(watched)))?;
        site.api.define_cluster_policies();
        site.api.apply(cluster_policy("a", 1));
        let policy = ObjectKey::new(Kind::ClusterNetworkPolicy, "", "a");
        site.until("the policy", |site| site.seen.contains_key(&policy))
    })
}

#[test]
fn objects_end_with_the_definition_of_their_kind() -> Result<()> {
    alone(|| {
        let policy = ObjectKey::new(Kind::ClusterNetworkPolicy, "", "a");
        // Whether the deletion of the objects is seen before the definition's.
        for seen in [true, false] {
            let mut site = Site::new(Abilities::default(), &[one_of_each(), vec![cluster_policy("a", 1)]].concat())?;
            site.until("the policy", |site| site.seen.contains_key(&policy))?;
            if !seen {
                site.api.set_mood(Mood::HangingUp);
                site.until("an error", |site| site.source.status().error.is_some())?;
            }
            site.api.requests();
            site.api.remove_cluster_policies();
            if !seen {
                site.api.forget();
                site.api.set_mood(Mood::Well);
            }
            site.until("no policy", |site| !site.seen.contains_key(&policy))?;
            let watched =
                |request: &String| request.contains("/customresourcedefinitions?") && request.contains("watch=");
            wait_until("a watch of the definition", || Ok(site.api.requests().iter().any(watched)))?;
            site.until("no error", |site| site.source.status().error.is_none())?;
            site.api.define_cluster_policies();
            site.api.apply(cluster_policy("a", 2));
            site.converges()?;
        }
        Ok(())
    })
}

#[test]
fn objects_stay_while_the_definition_of_their_kind_exists() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities::default(), &[one_of_each(), vec![cluster_policy("a", 1)]].concat())?;
        site.converges()?;
        site.api.set_abilities(Abilities { cluster_policies: false, ..Abilities::default() });
        site.api.disconnect();
        site.until("an error", |site| site.source.status().error.is_some())?;
        let error = format!("{:?}", site.source.status().error);
        ensure!(error.contains("stay in effect") && !error.contains("parse"), "{error}");
        site.converges()?;
        site.api.set_abilities(Abilities::default());
        site.until("no error", |site| site.source.status().error.is_none())?;
        site.converges()
    })
}

#[test]
fn server_without_some_kinds_causes_no_error_after_an_outage() -> Result<()> {
    alone(|| {
        let objects = &one_of_each()[..3];
        let abilities = Abilities { service_cidrs: false, cluster_policies: false, ..Abilities::default() };
        let mut site = Site::new(abilities, objects)?;
        site.api.set_mood(Mood::HangingUp);
        site.until("an error", |site| site.source.status().error.is_some())?;
        site.api.set_mood(Mood::Well);
        site.converges()?;
        site.until("no error", |site| site.source.status().error.is_none())
    })
}
