// Runs the .gotmpl files beside this file with Go's text/template, called as Ollama calls templates, and compares the
// results with golden.json. Run: `go run check.go`.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type conversation struct {
	Messages []*message `json:"messages"`
	Prompt   string     `json:"prompt"`
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	text, err := os.ReadFile("golden.json")
	check(err)
	var golden map[string][]conversation
	check(json.Unmarshal(text, &golden))
	names := []string{}
	for name := range golden {
		names = append(names, name)
	}
	sort.Strings(names)
	failed := false
	for _, name := range names {
		source, err := os.ReadFile(name + ".gotmpl")
		check(err)
		parsed, err := template.New("").Option("missingkey=zero").Parse(string(source))
		check(err)
		for _, conversation := range golden[name] {
			system := []string{}
			for _, m := range conversation.Messages {
				if m.Role == "system" {
					system = append(system, m.Content)
				}
			}
			var out strings.Builder
			check(parsed.Execute(&out, map[string]any{
				"System":   strings.Join(system, "\n\n"),
				"Messages": conversation.Messages,
				"Response": "",
			}))
			if out.String() != conversation.Prompt {
				failed = true
				fmt.Printf("%s differs\nexpected: %q\nfound:    %q\n", name, conversation.Prompt, out.String())
			}
		}
		fmt.Printf("%s: %d conversations\n", name, len(golden[name]))
	}
	if failed {
		os.Exit(1)
	}
}
