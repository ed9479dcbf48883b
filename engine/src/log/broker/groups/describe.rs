//! Groups, for people.

use crate::log::{
    broker::{Broker, OFFSETS_TOPIC},
    groups::Phase,
};
use bytes::Bytes;
use kafka_protocol::{
    error::ResponseError,
    messages::{
        describe_groups_response::{DescribedGroup, DescribedGroupMember},
        list_groups_response::ListedGroup,
        DescribeGroupsRequest, DescribeGroupsResponse, ListGroupsRequest, ListGroupsResponse,
    },
    protocol::StrBytes,
};
use std::sync::Arc;

impl Broker {
    /// The groups that this broker coordinates.
    pub async fn list_groups(self: &Arc<Self>, request: ListGroupsRequest) -> ListGroupsResponse {
        // All that are here, loaded or not: what is missing would be taken for what never was.
        let mut open = Vec::new();
        for index in self.coordinated(OFFSETS_TOPIC) {
            let Ok(coordinator) = self.group_coordinator(index).await else {
                let loading = ResponseError::CoordinatorLoadInProgress.code();
                return ListGroupsResponse::default().with_error_code(loading);
            };
            open.push(coordinator);
        }
        let mut all = Vec::new();
        for coordinator in open {
            let groups = coordinator.seats.lock();
            for (name, seat) in groups.iter() {
                let state = state_of(seat.group.phase());
                if wanted(&request.states_filter, state) && wanted(&request.types_filter, CLASSIC) {
                    let kind = seat.group.protocol_type().to_owned();
                    all.push(
                        ListedGroup::default()
                            .with_group_id(StrBytes::from_string(name.clone()).into())
                            .with_protocol_type(StrBytes::from_string(kind))
                            .with_group_state(StrBytes::from_static_str(state))
                            .with_group_type(StrBytes::from_static_str(CLASSIC)),
                    );
                }
            }
        }
        ListGroupsResponse::default().with_groups(all)
    }

    /// Groups and their members.
    pub async fn describe_groups(
        self: &Arc<Self>,
        request: DescribeGroupsRequest,
    ) -> DescribeGroupsResponse {
        let mut all = Vec::new();
        for id in request.groups {
            let answer = DescribedGroup::default().with_group_id(id.clone());
            let coordinator = match self.coordinator_of_group(&id).await {
                Err(error) => {
                    all.push(answer.with_error_code(error.code()));
                    continue;
                }
                Ok(coordinator) => coordinator,
            };
            let groups = coordinator.seats.lock();
            all.push(match groups.get(id.as_str()) {
                None => answer.with_group_state(StrBytes::from_static_str("Dead")),
                Some(seat) => {
                    // What members say of themselves, and by which protocol, is decided once they are stable.
                    let stable = seat.group.phase() == Phase::Stable;
                    let protocol = if stable { seat.group.protocol() } else { "" };
                    let members = seat.group.members().map(|member| {
                        let (id, instance, client, metadata, assignment) = member;
                        let text = |text: &str| StrBytes::from_string(text.to_owned());
                        DescribedGroupMember::default()
                            .with_member_id(text(id))
                            .with_group_instance_id(instance.map(text))
                            .with_client_id(text(client))
                            .with_member_metadata(if stable { metadata } else { Bytes::new() })
                            .with_member_assignment(assignment)
                    });
                    let text = |text: &str| StrBytes::from_string(text.to_owned());
                    answer
                        .with_group_state(text(state_of(seat.group.phase())))
                        .with_protocol_type(text(seat.group.protocol_type()))
                        .with_protocol_data(text(protocol))
                        .with_members(members.collect())
                }
            });
        }
        DescribeGroupsResponse::default().with_groups(all)
    }
}

/// The type of all groups that there are: those of the classic protocol (KIP-848 names it).
const CLASSIC: &str = "classic";

/// No filter lets everything through; their case does not matter.
fn wanted(filters: &[StrBytes], name: &str) -> bool {
    let mut any = filters.iter();
    filters.is_empty() || any.any(|filter| filter.eq_ignore_ascii_case(name))
}

fn state_of(phase: Phase) -> &'static str {
    match phase {
        Phase::Empty => "Empty",
        Phase::Preparing => "PreparingRebalance",
        Phase::Completing => "CompletingRebalance",
        Phase::Stable => "Stable",
    }
}
