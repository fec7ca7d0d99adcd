package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

var errHelp = errors.New("help")

// build is a build of sbx to measure.
type build struct{ name, file string }

type options struct {
	only    *regexp.Regexp
	paths   []string
	rounds  int
	seconds time.Duration
	quick   bool
	sbx     []build
	peers   string
	json    string
	report  string
	merge   bool
	list    bool
	files   []string // with merge
	command string   // as it was given
}

const usage = `Usage: bench [OPTIONS]              measure (as root)
       bench --merge FILE.json...   put the results of several runs together

`

func parseOptions(args []string) (options, error) {
	var o options
	var only, paths string
	var seconds float64
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&only, "only", "", "the scenarios whose name matches `REGEXP` (see --list)")
	fs.StringVar(&paths, "paths", "", "only these paths: a comma-separated `LIST` of names, of sbx with or without :BUILD")
	fs.IntVar(&o.rounds, "rounds", 0, "measure each path `N` times, interleaved (default 5; 3 with --quick)")
	fs.Float64Var(&seconds, "seconds", 0, "how long one measure takes, in `S` (default 1.5; 0.6 with --quick)")
	fs.BoolVar(&o.quick, "quick", false, "fewer and shorter rounds of the scenarios that decide")
	fs.Func("sbx", "a build of sbx, as `[NAME=]FILE`; again for more to compare (default: sbx beside this program)", func(s string) error {
		name, file, ok := strings.Cut(s, "=")
		if !ok {
			name, file = fmt.Sprint(len(o.sbx)+1), s
		}
		file, err := filepath.Abs(file)
		if err != nil {
			return err
		}
		if _, err := os.Stat(file); err != nil {
			return err
		}
		o.sbx = append(o.sbx, build{name, file})
		return nil
	})
	fs.StringVar(&o.peers, "peers", defaultPeers(), "the `DIR` that scripts/peers.sh has filled")
	fs.StringVar(&o.json, "json", "", "write the results to `FILE`")
	fs.StringVar(&o.report, "report", "", "write the tables and the plot into `FILE`, between its marker comments, and beside it")
	fs.BoolVar(&o.merge, "merge", false, "measure nothing: merge the files given; they are rounds of one measurement")
	fs.BoolVar(&o.list, "list", false, "list scenarios and paths")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Print(usage)
			fs.SetOutput(os.Stdout)
			fs.PrintDefaults()
			return o, errHelp
		}
		return o, err
	}
	o.files = fs.Args()
	if len(o.files) > 0 && !o.merge {
		return o, fmt.Errorf("unexpected argument %q", o.files[0])
	}
	var err error
	if o.only, err = regexp.Compile(only); err != nil {
		return o, fmt.Errorf("--only: %w", err)
	}
	if paths != "" {
		o.paths = strings.Split(paths, ",")
	}
	if o.rounds <= 0 {
		o.rounds = 5
		if o.quick {
			o.rounds = 3
		}
	}
	if seconds <= 0 {
		seconds = 1.5
		if o.quick {
			seconds = 0.6
		}
	}
	o.seconds = time.Duration(seconds * float64(time.Second))
	for _, f := range []*string{&o.json, &o.report, &o.peers} {
		if *f != "" {
			if *f, err = filepath.Abs(*f); err != nil {
				return o, err
			}
		}
	}
	if len(o.sbx) == 0 && !o.merge {
		exe, err := os.Executable()
		if err != nil {
			return o, err
		}
		file := filepath.Join(filepath.Dir(exe), "sbx")
		if _, err := os.Stat(file); err != nil && !o.list {
			return o, fmt.Errorf("%w: run make build, or give --sbx FILE", err)
		}
		o.sbx = []build{{"1", file}}
	}
	o.command = o.describe(only)
	return o, nil
}

// describe is the command without what only says where things are.
func (o options) describe(only string) string {
	words := []string{"bench"}
	if only != "" {
		words = append(words, "--only", "'"+only+"'")
	}
	if len(o.paths) > 0 {
		words = append(words, "--paths", strings.Join(o.paths, ","))
	}
	if o.quick {
		words = append(words, "--quick")
	}
	return strings.Join(append(words, "--rounds", fmt.Sprint(o.rounds), "--seconds", fmt.Sprint(o.seconds.Seconds())), " ")
}

// defaultPeers is where scripts/peers.sh puts them.
func defaultPeers() string {
	if dir := os.Getenv("SBX_BENCH_PEERS"); dir != "" {
		return dir + "/bin"
	}
	return "/var/cache/sbx-bench/bin"
}

// wants tells whether a path was asked for; a name of sbx stands for all builds.
func (o options) wants(name string) bool {
	if len(o.paths) == 0 {
		return true
	}
	base, _, _ := strings.Cut(name, ":")
	for _, p := range o.paths {
		if p == name || p == base || p == "sbx" && strings.HasPrefix(base, "sbx-") {
			return true
		}
	}
	return false
}
