use super::*;
use crate::firmware::{Node, print_order};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

const ESP: HardDrive = HardDrive {
    number: 1,
    start: 2048,
    length: 0x1_0000,
    guid: [7; 16],
};
const LOADER: &str = "\\EFI\\systemd\\systemd-bootx64.efi";

fn wanted(count: u16) -> Wanted {
    Wanted {
        partition: ESP,
        loader: LOADER.to_owned(),
        count,
    }
}

fn named(description: &str, partition: HardDrive) -> Vec<u8> {
    LoadOption::new(description.to_owned(), partition, LOADER.to_owned())
        .encode()
        .unwrap()
}

fn windows() -> Vec<u8> {
    LoadOption::new("Windows".to_owned(), ESP, "\\w.efi".to_owned())
        .encode()
        .unwrap()
}

/// Does a step, as firmware does.
fn step(observed: &mut Observed, step: &Step) {
    match step {
        Step::Option { number, option } => {
            let bytes = option.encode().unwrap();
            observed.options.insert(*number, bytes);
        }
        Step::Order(order) => observed.order = print_order(order),
        Step::Remove(number) => {
            observed.options.remove(number);
        }
    }
}

fn execute(observed: &mut Observed, count: u16) -> Plan {
    let plan = plan(observed, &wanted(count)).unwrap();
    plan.steps.iter().for_each(|one| step(observed, one));
    plan
}

fn order(observed: &Observed) -> Vec<u16> {
    parse_order(&observed.order).unwrap()
}

#[test]
fn a_new_machine_gets_all_options_before_the_order_that_puts_them_first() {
    let mut observed = Observed {
        options: [(1, windows())].into(),
        order: print_order(&[1, 9]), // 9 is named and not there: its number is not ours to take
    };
    let plan = plan(&observed, &wanted(4)).unwrap();
    assert_eq!(
        plan.to_string(),
        "write Boot0000: Bedplate\n\
         write Boot0002: Bedplate (2)\n\
         write Boot0003: Bedplate (3)\n\
         write Boot0004: Bedplate (4)\n\
         write BootOrder: 0000 0002 0003 0004 0001 0009\n"
    );
    execute(&mut observed, 4);
    assert!(execute(&mut observed, 4).is_empty());
}

#[test]
fn a_machine_without_any_variable_gets_them_too() {
    let mut observed = Observed::default();
    execute(&mut observed, 4);
    assert_eq!(order(&observed), [0, 1, 2, 3]);
}

#[test]
fn options_of_a_copied_disk_are_written_anew_in_their_numbers() {
    let mut observed = Observed::default();
    let copied_from = HardDrive {
        guid: [8; 16],
        ..ESP
    };
    observed.options.insert(5, named("Bedplate", copied_from));
    observed
        .options
        .insert(6, named("Bedplate (2)", copied_from));
    observed.order = print_order(&[5, 6]);
    execute(&mut observed, 2);
    assert_eq!(observed.options.len(), 2);
    assert_eq!(observed.options[&5], named("Bedplate", ESP));
    assert_eq!(observed.options[&6], named("Bedplate (2)", ESP));
}

#[test]
fn what_is_left_over_leaves_the_order_before_it_is_removed() {
    let mut observed = Observed::default();
    execute(&mut observed, 4);
    observed.options.insert(9, named("Bedplate (2)", ESP)); // twice, as some firmware copies them
    observed.order = print_order(&[0, 1, 2, 3, 9]);
    let plan = execute(&mut observed, 3);
    assert_eq!(
        plan.steps,
        [Step::Order(vec![0, 1, 2]), Step::Remove(3), Step::Remove(9)]
    );
    assert!(execute(&mut observed, 3).is_empty());
}

#[test]
fn another_system_before_the_block_stays_there_and_one_inside_goes_behind() {
    let mut observed = Observed::default();
    execute(&mut observed, 3);
    observed.options.insert(7, windows());
    observed.order = print_order(&[7, 0, 1, 2]);
    assert!(execute(&mut observed, 3).is_empty());
    observed.order = print_order(&[0, 7, 1, 2]);
    execute(&mut observed, 3);
    assert_eq!(order(&observed), [0, 1, 2, 7]);
}

#[test]
fn a_switched_off_option_is_switched_on_and_a_way_to_the_disk_is_no_reason_to_write() {
    let mut observed = Observed::default();
    execute(&mut observed, 2);
    let mut option = LoadOption::decode(&observed.options[&0]).unwrap();
    option.path.insert(
        0,
        Node::Opaque {
            kind: 2,
            subtype: 1,
            data: vec![1],
        },
    );
    observed.options.insert(0, option.encode().unwrap());
    assert!(execute(&mut observed, 2).is_empty());
    option.attributes = 0;
    observed.options.insert(0, option.encode().unwrap());
    assert_eq!(execute(&mut observed, 2).steps.len(), 1);
}

#[test]
fn an_order_that_cannot_be_read_is_not_written_over() {
    let observed = Observed {
        options: BTreeMap::new(),
        order: vec![1],
    };
    assert_eq!(
        plan(&observed, &wanted(4)),
        Err(PlanError::Order(OrderError(1)))
    );
}

#[test]
fn only_names_that_we_give_are_ours() {
    for ours in ["Bedplate", "Bedplate (2)", "Bedplate (17)"] {
        assert!(is_ours(ours), "{ours}");
    }
    for other in [
        "Bedplate (1)",
        "Bedplate (02)",
        "Bedplate (0)",
        "Bedplate 2",
        "Bedplates",
        "bedplate",
        "",
    ] {
        assert!(!is_ours(other), "{other}");
    }
}

/// Options that come near to ours, others', and bytes that are none.
fn option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![(1..6_u16).prop_map(description), Just("Windows".to_owned()),];
    let near = (name, 6..8_u8, 0..2_u32).prop_map(|(name, guid, attributes)| {
        let partition = HardDrive {
            guid: [guid; 16],
            ..ESP
        };
        let mut option = LoadOption::new(name, partition, LOADER.to_owned());
        option.attributes = attributes;
        option.encode().unwrap()
    });
    prop_oneof![3 => near, 1 => vec(any::<u8>(), 0..12)]
}

proptest! {
    /// The law of the module, also for a plan that is cut anywhere.
    #[test]
    fn a_cut_plan_is_finished_by_the_next_and_others_keep_bytes_and_order(
        options in btree_map(0..12_u16, option(), 0..10),
        numbers in vec(0..14_u16, 0..10),
        count in 0..6_u16,
        cut: prop::sample::Index,
    ) {
        let before = Observed { options, order: print_order(&numbers) };
        let mut after = before.clone();
        let first = plan(&after, &wanted(count)).unwrap();
        let done = cut.index(first.steps.len() + 1);
        for one in &first.steps[..done] {
            step(&mut after, one);
            // The order may name what was missing before, and nothing that is missing only now.
            for number in order(&after) {
                prop_assert!(after.options.contains_key(&number) || !before.options.contains_key(&number));
            }
        }
        execute(&mut after, count);
        prop_assert!(execute(&mut after, count).is_empty());

        let ours = |observed: &Observed, number: &u16| {
            observed.options.get(number).and_then(|bytes| LoadOption::decode(bytes).ok())
                .is_some_and(|option| is_ours(&option.description))
        };
        for (number, bytes) in &before.options {
            if !ours(&before, number) {
                prop_assert_eq!(after.options.get(number), Some(bytes));
            }
        }
        let block: Vec<u16> = order(&after).into_iter().filter(|number| ours(&after, number)).collect();
        let names: Vec<String> = block.iter()
            .map(|number| LoadOption::decode(&after.options[number]).unwrap().description)
            .collect();
        prop_assert_eq!(names, (1..=count).map(description).collect::<Vec<_>>());
        let others = |order: Vec<u16>| -> Vec<u16> {
            order.into_iter().filter(|number| !ours(&before, number) && !ours(&after, number)).collect()
        };
        prop_assert_eq!(others(numbers), others(order(&after)));
    }

    #[test]
    fn whatever_the_firmware_has_there_is_a_plan_or_an_error(
        options in btree_map(any::<u16>(), any::<Vec<u8>>(), 0..5),
        order: Vec<u8>,
    ) {
        let odd = order.len() % 2 == 1;
        prop_assert_eq!(plan(&Observed { options, order }, &wanted(4)).is_err(), odd);
    }
}
