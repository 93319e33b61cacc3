//! A service as text.

use super::super::output::{Column, NOTHING, Show, Text, duration, or_nothing};
use super::detail::{Choice, Clients, FrontendDetail, ServiceDetail, Target};
use super::row::{kind_name, source_name};
use super::why;
use crate::frontend::IfNone;
use crate::model::{Ignored, ServiceType, TrafficPolicy};
use crate::select::Explained;

impl Show for ServiceDetail {
    fn text(&self) -> Text {
        let mut text = Text::default();
        text.line("service", &format!("{}/{}", self.namespace, self.name));
        match &self.explanation {
            Some(explained) => self.explained(explained, &mut text),
            None => {
                let reason = self.not_explained.as_deref().unwrap_or(NOTHING);
                text.line("unknown", &format!("why endpoints are excluded: {reason}"));
            }
        }
        if !self.frontends.is_empty() {
            text.gap();
            frontends(&self.frontends, &mut text);
            text.gap();
            backends(&self.frontends, &mut text);
        }
        if let Some(explained) = &self.explanation {
            left_out(explained, &mut text);
        }
        text
    }
}

impl ServiceDetail {
    fn explained(&self, explained: &Explained, text: &mut Text) {
        text.line("type", type_name(explained.kind));
        if let Some(ignored) = explained.ignored {
            text.line("ignored", ignored_reason(ignored));
        }
        let policies = [explained.internal_traffic_policy, explained.external_traffic_policy].map(policy_name);
        text.line("policies", &format!("internal {}, external {}", policies[0], policies[1]));
        if let (Some(port), Some(count)) = (explained.health_check_node_port, explained.health_check_endpoints) {
            text.line("health", &format!("node port {port}, local endpoints: {count}"));
        }
        for difference in &self.differences {
            text.line("tables", difference);
        }
        if self.differences.is_empty() && explained.ignored.is_none() {
            text.line("tables", "in sync with its objects");
        }
        for remark in &explained.remarks {
            text.line("note", remark);
        }
    }
}

fn frontends(frontends: &[FrontendDetail], text: &mut Text) {
    let columns = [
        Column::Text("FRONTEND"),
        Column::Text("PROTOCOL"),
        Column::Text("PORT NAME"),
        Column::Text("KIND"),
        Column::Text("SOURCE"),
        Column::Text("AFFINITY"),
        Column::Text("SOURCE RANGES"),
    ];
    let ranges = |detail: &FrontendDetail| match detail.source_ranges.as_deref() {
        None => NOTHING.to_owned(),
        Some([]) => "(none: all denied)".to_owned(),
        Some(ranges) => ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let rows = frontends.iter().map(|detail| {
        let row = &detail.frontend;
        vec![
            row.place.to_string(),
            row.protocol.clone(),
            or_nothing(&row.port_name),
            kind_name(row.kind).to_owned(),
            source_name(row.source).to_owned(),
            row.affinity_seconds.map_or_else(|| NOTHING.to_owned(), |seconds| duration(seconds.into())),
            ranges(detail),
        ]
    });
    text.table(&columns, rows);
}

fn backends(frontends: &[FrontendDetail], text: &mut Text) {
    let columns = [
        Column::Text("FRONTEND"),
        Column::Text("PROTOCOL"),
        Column::Text("CLIENTS"),
        Column::Text("BACKEND"),
        Column::Text("NODE"),
        Column::Text("POD"),
        Column::Number("SHARE"),
        Column::Number("FLOWS"),
    ];
    let mut rows = Vec::new();
    for detail in frontends {
        let start = |clients| {
            let row = &detail.frontend;
            vec![row.place.to_string(), row.protocol.clone(), clients_name(clients).to_owned()]
        };
        for choice in &detail.choices {
            if let Some(none) = choice.if_none {
                let what = if none == IfNone::Drop { "(none: dropped)" } else { "(none: rejected)" };
                let end = [what, NOTHING, NOTHING, NOTHING, NOTHING].map(str::to_owned);
                rows.push([start(choice.clients), end.to_vec()].concat());
            }
            rows.extend(choice.targets.iter().map(|t| [start(choice.clients), target(choice, t)].concat()));
        }
        for forwarded in &detail.forwarded {
            let node = forwarded.node.clone().unwrap_or_else(|| "other".to_owned());
            let to = format!("(forwarded to {})", forwarded.address);
            let end = vec![to, node, NOTHING.to_owned(), NOTHING.to_owned(), forwarded.flows.to_string()];
            rows.push([start(Clients::Outside), end].concat());
        }
    }
    text.table(&columns, rows);
}

fn target(choice: &Choice, target: &Target) -> Vec<String> {
    let node = match (&target.node, target.local) {
        (_, true) => "this",
        (Some(name), false) => name,
        (None, false) => "other",
    };
    let share = 100.0 * target.slots as f64 / f64::from(choice.slots.max(1));
    vec![
        std::net::SocketAddr::new(target.address, target.port).to_string(),
        node.to_owned(),
        or_nothing(&target.pod),
        format!("{share:.1} %"),
        or_nothing(&target.flows),
    ]
}

fn left_out(explained: &Explained, text: &mut Text) {
    let left_out = why::left_out(explained);
    if left_out.is_empty() {
        return;
    }
    let columns = [
        Column::Text("EXCLUDED"),
        Column::Text("NODE"),
        Column::Text("ZONE"),
        Column::Text("REASON"),
        Column::Text("FRONTEND"),
    ];
    let rows = left_out.iter().map(|row| {
        let why = row.why.to_owned();
        vec![row.endpoint.clone(), or_nothing(&row.node), or_nothing(&row.zone), why, row.at.join(", ")]
    });
    text.gap();
    text.table(&columns, rows);
}

const fn clients_name(clients: Clients) -> &'static str {
    match clients {
        Clients::All => "all",
        Clients::ThisNode => "this node",
        Clients::Outside => "external",
        Clients::Forwarded => "forwarded",
    }
}

const fn type_name(kind: ServiceType) -> &'static str {
    match kind {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::ExternalName => "ExternalName",
    }
}

const fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

const fn ignored_reason(ignored: Ignored) -> &'static str {
    match ignored {
        Ignored::ExternalName => "ExternalName: a DNS alias without a ClusterIP",
        Ignored::Headless => "headless: clients use its endpoints directly",
        Ignored::OtherProxy => "assigned to another proxy by label",
    }
}
