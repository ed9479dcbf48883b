//! Prints the table that a run ends with.

use crate::revenue::{pipeline::minute_name, table::Table};

/// As JSON lines, or for people. What is missing is said beside it.
pub(super) fn print(table: &Table, json: bool) {
    if table.missing > 0 {
        let missing = table.missing;
        anstream::eprintln!(
            "{missing} rows of output are missing: the table is not whole. At-most-once allows it; --guarantee \
             exactly-once does not"
        );
    }
    if json {
        for row in table.rows.values() {
            anstream::println!("{}", serde_json::to_string(row).expect("plain data"));
        }
        return;
    }
    let (mut orders, mut cents) = (0, 0);
    for row in table.rows.values() {
        let minute = minute_name(row.minute_ms);
        let sum = row.cents as f64 / 100.0;
        anstream::println!("{minute:<28} {:>9} orders {sum:>16.2}", row.orders);
        orders += row.orders;
        cents += row.cents;
    }
    let (minutes, sum) = (table.rows.len(), cents as f64 / 100.0);
    anstream::println!("{minutes} minutes, {orders} orders, {sum:.2} in all");
    if table.dead_letters > 0 {
        let letters = table.dead_letters;
        anstream::println!("{letters} events could not be used: see the dead letters");
    }
}
