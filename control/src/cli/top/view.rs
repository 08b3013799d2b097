//! Draws what the model holds. It decides nothing.

use fastpath::verdict::DropReason;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState, Tabs};

use super::keys::HELP;
use super::model::{Contact, Model, Sort, Tab};
use super::rates::short;
use crate::api::types::{QueueStatus, Status};
use crate::output;

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const GOOD: Style = Style::new().fg(Color::Green);
const WARN: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let lines = [1, 1, 1].map(Constraint::Length);
    let areas = Layout::vertical(lines.into_iter().chain([Constraint::Min(2), Constraint::Length(1)]));
    let [title, totals, tabs, table, footer] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(title_line(model)), title);
    frame.render_widget(Paragraph::new(state_line(model)).alignment(Alignment::Right), title);
    frame.render_widget(Paragraph::new(totals_line(model)), totals);
    let chosen = Tab::ALL.iter().position(|tab| *tab == model.tab);
    let names = Tab::ALL.iter().enumerate().map(|(number, tab)| format!("{} {}", number + 1, tab.name()));
    frame.render_widget(Tabs::new(names).select(chosen).highlight_style(CHOSEN), tabs);
    model.page = usize::from(table.height.saturating_sub(1)).max(1);
    draw_table(frame, table, model);
    frame.render_widget(Paragraph::new(footer_line(model)), footer);
    if model.shows_help {
        draw_help(frame);
    }
}

fn title_line(model: &Model) -> Line<'static> {
    let Some(status) = model.status() else { return Line::styled("spillway", BOLD) };
    let mut spans = vec![Span::styled(format!("spillway {}  ", status.version), BOLD)];
    spans.push(match status.ready.reasons.first() {
        None if status.ready.ok => Span::styled("ready", GOOD),
        None => Span::styled("not ready", BAD),
        Some(reason) => Span::styled(format!("not ready: {reason}"), BAD),
    });
    spans.push(Span::styled(format!("  up {}", output::seconds(status.uptime_seconds)), FAINT));
    Line::from(spans)
}

fn state_line(model: &Model) -> Line<'static> {
    match &model.contact {
        Contact::Waiting => Line::styled("asking …", FAINT),
        Contact::Lost(_) => Line::styled(" no answer, trying again ", BAD.add_modifier(Modifier::REVERSED)),
        Contact::Answering if model.is_paused => Line::styled(" paused ", CHOSEN),
        Contact::Answering => {
            Line::styled(format!("every {}", humantime::format_duration(model.interval)), FAINT)
        }
    }
}

fn totals_line(model: &Model) -> Line<'static> {
    if let (Contact::Lost(why), None) = (&model.contact, model.status()) {
        return Line::styled(why.clone(), BAD);
    }
    let Some(status) = model.status() else { return Line::default() };
    let (total, [out, inward]) = (&model.rated.total, &model.rated.totals);
    let drops = format!("drops {}/s", short(total.drops));
    Line::from(vec![
        Span::raw(format!("out {:>5}bit/s {} ", short(total.bits_out), out.bars(8))),
        Span::raw(format!(" in {:>5}bit/s {} ", short(total.bits_in), inward.bars(8))),
        Span::raw(format!(" sessions {} +{}/s  ", status.sessions, short(total.begun))),
        Span::styled(drops, if total.drops > 0.0 { WARN } else { Style::new() }),
    ])
}

fn footer_line(model: &Model) -> Line<'_> {
    if model.is_typing {
        return Line::from(vec![
            Span::styled("filter: ", BOLD),
            Span::raw(&model.filter),
            Span::styled(" ", CHOSEN),
        ]);
    }
    let mut spans =
        vec![Span::styled("q end  ? help  Tab views  / filter  Space pause  r o i s n d a sort", FAINT)];
    if !model.filter.is_empty() {
        spans.push(Span::styled(format!("  /{}", model.filter), WARN));
    }
    Line::from(spans)
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let (header, widths, rows) = match model.tab {
        Tab::Tenants => tenants(model),
        Tab::Workers => workers(model),
        Tab::Drops => drops(model),
        Tab::Ports => ports(model),
    };
    if rows.is_empty() {
        let why = if model.status().is_none() { "" } else { "nothing to show" };
        return frame.render_widget(Paragraph::new(Line::styled(why, FAINT)), area);
    }
    let table = Table::new(rows, widths).header(Row::new(header).style(BOLD)).row_highlight_style(CHOSEN);
    let mut state = TableState::new().with_selected(model.row);
    frame.render_stateful_widget(table, area, &mut state);
}

/// Header, widths of columns, and rows.
type Drawn<'a> = (Vec<Cell<'a>>, Vec<Constraint>, Vec<Row<'a>>);

fn tenants(model: &Model) -> Drawn<'_> {
    const BARS: u16 = 12;
    let rows = model.tenants().into_iter().map(|row| {
        let (name, status, rates) = (&row.view.tenant.name, &row.view.status, row.rates);
        let bars = model.rated.histories.get(name).map(|history| history.bars(BARS.into()));
        let drops = right(short(rates.drops));
        Row::new(vec![
            Cell::from(name.as_str()).style(if status.trouble.is_some() { BAD } else { Style::new() }),
            right(short(rates.bits_out)),
            right(short(rates.bits_in)),
            right(short(rates.packets_out + rates.packets_in)),
            right(status.sessions.to_string()),
            right(short(rates.begun)),
            if rates.drops > 0.0 { drops.style(WARN) } else { drops },
            Cell::from(bars.unwrap_or_default()),
        ])
    });
    let rows = rows.collect();
    let titles = [
        (Sort::Name, "TENANT"),
        (Sort::Out, "OUT b/s"),
        (Sort::In, "IN b/s"),
        (Sort::Rate, "pkt/s"),
        (Sort::Sessions, "SESSIONS"),
        (Sort::New, "NEW/s"),
        (Sort::Drops, "DROPS/s"),
    ];
    let title = |(sort, title): (Sort, &str)| {
        let style = if sort == model.sort { BOLD.add_modifier(Modifier::UNDERLINED) } else { BOLD };
        let line = Line::styled(title.to_owned(), style);
        Cell::from(if sort == Sort::Name { line } else { line.alignment(Alignment::Right) })
    };
    let header = titles.into_iter().map(title).chain([Cell::from(" RATE")]).collect();
    let widths = [7, 7, 6, 9, 6, 7, BARS].map(Constraint::Length);
    (header, [Constraint::Min(16)].into_iter().chain(widths).collect(), rows)
}

fn workers(model: &Model) -> Drawn<'_> {
    let workers = model.status().map(|status| status.workers.as_slice()).unwrap_or_default();
    let lost: fn(&QueueStatus) -> u64 =
        |queue| queue.rx_dropped + queue.rx_ring_full + queue.fill_ring_empty + queue.invalid_descriptors;
    let rows = workers.iter().enumerate().map(|(place, worker)| {
        let load = model.rated.loads.get(place).copied().unwrap_or_default();
        Row::new(vec![
            right(worker.worker.to_string()),
            right(worker.core.map_or("any".to_owned(), |core| core.to_string())),
            Cell::from(gauge(load, 16)).style(by_share(load)),
            right(worker.sessions.to_string()),
            right(worker.session_capacity.to_string()),
            right(worker.queues.iter().map(lost).sum::<u64>().to_string()),
            right(worker.handed_over.to_string()),
            right(worker.panics.to_string()).style(if worker.panics > 0 { BAD } else { Style::new() }),
        ])
    });
    let titles = ["WORKER", "CORE", "LOAD", "SESSIONS", "CAPACITY", "LOST", "HANDED OVER", "PANICS"];
    let header =
        titles.map(|title| if title == "LOAD" { Cell::from(title) } else { right(title.to_owned()) });
    let widths = [6, 4, 21, 9, 9, 7, 11, 6].map(Constraint::Length);
    (header.into(), widths.into(), rows.collect())
}

fn drops(model: &Model) -> Drawn<'_> {
    let rows = model.drops().into_iter().map(|(reason, count, rate)| {
        let known = DropReason::ALL.iter().find(|known| known.name() == reason);
        Row::new(vec![
            Cell::from(reason),
            right(short(rate)).style(if rate > 0.0 { WARN } else { Style::new() }),
            right(count.to_string()),
            Cell::from(known.map_or("", |known| known.help())),
        ])
    });
    let rows = rows.collect();
    let header =
        vec![Cell::from("REASON"), right("/s".into()), right("PACKETS".into()), Cell::from("MEANING")];
    let widths = [Constraint::Length(20), Constraint::Length(6), Constraint::Length(12), Constraint::Min(20)];
    (header, widths.into(), rows)
}

fn ports(model: &Model) -> Drawn<'_> {
    let rows = model.ports().into_iter().map(|(egress, ports)| {
        let share = f64::from(ports.used) / f64::from(ports.capacity.max(1));
        let ends = ports.exhaustion_seconds.map(output::seconds);
        Row::new(vec![
            Cell::from(egress.address.to_string()),
            Cell::from(egress.tenant.as_str()),
            Cell::from(ports.protocol.as_str()),
            right(ports.used.to_string()),
            right(ports.capacity.saturating_sub(ports.used).to_string()),
            Cell::from(gauge(share, 10)).style(by_share(share)),
            Cell::from(ends.unwrap_or_default()).style(BAD),
        ])
    });
    let rows = rows.collect();
    let header = vec![
        Cell::from("EGRESS ADDRESS"),
        Cell::from("TENANT"),
        Cell::from("PROTO"),
        right("TAKEN".into()),
        right("FREE".into()),
        Cell::from(""),
        Cell::from("RUNS OUT IN"),
    ];
    let widths = [15, 16, 5, 6, 6, 15, 11].map(Constraint::Length);
    (header, widths.into(), rows)
}

fn draw_help(frame: &mut Frame<'_>) {
    let rows = HELP
        .iter()
        .map(|(keys, what)| Line::from(vec![Span::styled(format!("{keys:<10} "), BOLD), Span::raw(*what)]));
    let area = frame.area();
    let (width, height) =
        (76.min(area.width), u16::try_from(HELP.len() + 2).unwrap_or(u16::MAX).min(area.height));
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    frame.render_widget(
        Paragraph::new(rows.collect::<Vec<_>>()).block(Block::bordered().title(" Keys ")),
        place,
    );
}

fn right<'a>(text: String) -> Cell<'a> {
    Cell::from(Line::from(text).alignment(Alignment::Right))
}

/// Returns a share of 1 as a bar and in percent.
fn gauge(share: f64, columns: usize) -> String {
    let filled = (0..columns).filter(|column| share * columns as f64 > *column as f64 + 0.25).count();
    format!("{}{} {:>3.0}%", "█".repeat(filled), "·".repeat(columns - filled), 100.0 * share)
}

fn by_share(share: f64) -> Style {
    match share {
        share if share > 0.9 => BAD,
        share if share > 0.7 => WARN,
        _ => Style::new(),
    }
}

/// Returns what is shown as plain text, all rows of all views.
pub(super) fn plain(model: &Model) -> String {
    let Some(status) = model.status() else { return String::new() };
    let total = &model.rated.total;
    let ready = if status.ready.ok {
        "ready".to_owned()
    } else {
        format!("not ready: {}", status.ready.reasons.join("; "))
    };
    let head = format!(
        "spillway {}, {ready}, up {}\nout {}bit/s, in {}bit/s, {} sessions, {} new/s, {} drops/s",
        status.version,
        output::seconds(status.uptime_seconds),
        short(total.bits_out),
        short(total.bits_in),
        status.sessions,
        short(total.begun),
        short(total.drops),
    );
    [head, plain_tenants(model), plain_workers(model, status), plain_drops(model), plain_ports(model)]
        .join("\n\n")
}

fn plain_tenants(model: &Model) -> String {
    let header = ["TENANT", "OUT b/s", "IN b/s", "OUT pkt/s", "IN pkt/s", "SESSIONS", "NEW/s", "DROPS/s"];
    let rows = model.tenants().into_iter().map(|row| {
        let rates = row.rates;
        let numbers = [rates.bits_out, rates.bits_in, rates.packets_out, rates.packets_in].map(short);
        let mut cells = vec![row.view.tenant.name.clone()];
        cells.extend(numbers);
        cells.push(row.view.status.sessions.to_string());
        cells.extend([short(rates.begun), short(rates.drops)]);
        cells
    });
    output::table(&header, &header[1..], rows)
}

fn plain_workers(model: &Model, status: &Status) -> String {
    let header = ["WORKER", "LOAD", "SESSIONS", "CAPACITY", "PANICS"];
    let rows = status.workers.iter().zip(&model.rated.loads).map(|(worker, load)| {
        let load = format!("{:.0}%", 100.0 * load);
        let numbers =
            [worker.sessions, worker.session_capacity, worker.panics].map(|count| count.to_string());
        [vec![worker.worker.to_string(), load], numbers.into()].concat()
    });
    output::table(&header, &header, rows)
}

fn plain_drops(model: &Model) -> String {
    let rows = model.drops().into_iter();
    let rows = rows.map(|(reason, count, rate)| vec![reason.to_owned(), short(rate), count.to_string()]);
    output::table(&["DROP REASON", "PACKETS/s", "PACKETS"], &["PACKETS/s", "PACKETS"], rows)
}

fn plain_ports(model: &Model) -> String {
    let header = ["EGRESS ADDRESS", "TENANT", "PROTOCOL", "TAKEN", "FREE", "RUNS OUT IN"];
    let rows = model.ports().into_iter().map(|(egress, ports)| {
        vec![
            egress.address.to_string(),
            egress.tenant.clone(),
            ports.protocol.clone(),
            ports.used.to_string(),
            ports.capacity.saturating_sub(ports.used).to_string(),
            ports.exhaustion_seconds.map(output::seconds).unwrap_or_default(),
        ]
    });
    output::table(&header, &["TAKEN", "FREE"], rows)
}
