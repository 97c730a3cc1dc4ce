// Package clients checks Updraft with the two stock Go clients, database/sql and ADBC. The servers are running already; where
// they are comes in by environment variables (see integration-tests/python/suites.py). Without them the suite fails.
package clients

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// outcome is one square of docs/clients.md.
type outcome struct {
	Client  string `json:"client"`
	Feature string `json:"feature"`
	Status  string `json:"status"`
	Note    string `json:"note"`
}

var (
	mu       sync.Mutex
	outcomes = map[[2]string][]outcome{}
)

// feature counts the test for a square of the matrix, by how it ends.
func feature(t *testing.T, client, name string) {
	t.Helper()
	t.Cleanup(func() {
		o := outcome{client, name, "pass", ""}
		if t.Failed() {
			o.Status, o.Note = "fail", t.Name()
		}
		record(o)
	})
}

// limit states what the client cannot do, and fails on the day it can.
func limit(t *testing.T, client, name, reason string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("works, though it is listed as a limit of the client: %s", reason)
		return
	}
	record(outcome{client, name, "limit", reason})
}

func record(o outcome) {
	mu.Lock()
	defer mu.Unlock()
	key := [2]string{o.Client, o.Feature}
	outcomes[key] = append(outcomes[key], o)
}

func TestMain(m *testing.M) {
	for _, name := range []string{"UPDRAFT_HOST", "UPDRAFT_PORT", "UPDRAFT_TLS_PORT", "UPDRAFT_RESULTS"} {
		if os.Getenv(name) == "" {
			fmt.Fprintln(os.Stderr, name, "is not set; run this suite with integration-tests/test.sh clients-go")
			os.Exit(2)
		}
	}
	code := m.Run()
	if err := write(os.Getenv("UPDRAFT_RESULTS")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 2
	}
	os.Exit(code)
}

// write gives each square the worst of its outcomes; a limit beside what works is "partly".
func write(path string) error {
	rank := map[string]int{"pass": 0, "limit": 1, "fail": 2}
	rows := []outcome{}
	for _, all := range outcomes {
		worst, notes, passed := all[0], map[string]bool{}, false
		for _, o := range all {
			if rank[o.Status] > rank[worst.Status] {
				worst = o
			}
			if o.Note != "" {
				notes[o.Note] = true
			}
			passed = passed || o.Status == "pass"
		}
		sorted := make([]string, 0, len(notes))
		for note := range notes {
			sorted = append(sorted, note)
		}
		sort.Strings(sorted)
		worst.Note = strings.Join(sorted, "; ")
		if worst.Status == "limit" && passed {
			worst.Status = "partly"
		}
		rows = append(rows, worst)
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].Client+rows[i].Feature < rows[j].Client+rows[j].Feature })
	text, err := json.MarshalIndent(rows, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func env(name string) string { return os.Getenv("UPDRAFT_" + name) }

func address(port string) string { return env("HOST") + ":" + env(port) }

// queries are the 22 of TPC-H, with DuckDB's answers.
func queries(t *testing.T) map[string][2]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(env("TPCH"), "q*.sql"))
	if err != nil || len(files) != 22 {
		t.Fatalf("expected 22 queries, found %d (%v)", len(files), err)
	}
	all := map[string][2]string{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".sql")
		sql, err := os.ReadFile(file)
		must(t, err)
		answer, err := os.ReadFile(filepath.Join(env("ANSWERS"), name+".tsv"))
		must(t, err)
		all[name] = [2]string{string(sql), string(answer)}
	}
	return all
}

// sameRows compares rows of plain text, in any order, numbers within what a double can tell.
func sameRows(t *testing.T, got [][]string, answer string) {
	t.Helper()
	want := [][]string{}
	for _, line := range strings.Split(strings.TrimSuffix(answer, "\n"), "\n") {
		if line != "" {
			want = append(want, strings.Split(line, "\t"))
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d rows, DuckDB has %d", len(got), len(want))
	}
	byText := func(rows [][]string) {
		key := func(row []string) string {
			parts := make([]string, len(row))
			for i, cell := range row {
				parts[i] = cell
				if number, err := strconv.ParseFloat(cell, 64); err == nil {
					parts[i] = strconv.FormatFloat(number, 'f', 2, 64)
				}
			}
			return strings.Join(parts, "\t")
		}
		sort.SliceStable(rows, func(i, j int) bool { return key(rows[i]) < key(rows[j]) })
	}
	byText(got)
	byText(want)
	for i := range want {
		for j := range want[i] {
			a, errA := strconv.ParseFloat(got[i][j], 64)
			b, errB := strconv.ParseFloat(want[i][j], 64)
			close := errA == nil && errB == nil && math.Abs(a-b) <= math.Max(1e-4, 1e-6*math.Abs(b))
			if got[i][j] != want[i][j] && !close {
				t.Fatalf("row %d: %v, DuckDB has %v", i, got[i], want[i])
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func says(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(part)) {
			t.Fatalf("%q does not say %q", err, part)
		}
	}
}

func within(t *testing.T, most time.Duration, act func()) {
	t.Helper()
	begin := time.Now()
	act()
	if took := time.Since(begin); took > most {
		t.Fatalf("took %s, expected at most %s", took, most)
	}
}

// long runs for minutes unless it is stopped.
const long = "SELECT sum((a.id * b.id) % 7) AS s FROM big AS a CROSS JOIN big AS b"
const longRows = "SELECT a.id * b.id AS v FROM big AS a CROSS JOIN big AS b"
