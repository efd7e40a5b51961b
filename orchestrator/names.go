package orchestrator

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Words for services without a name: a network's qualities and its inventors.
const (
	adjectives = "able brave bright calm clear crisp direct eager even fair fast firm frank fresh gentle glad happy keen kind light lucid merry mild neat noble open patient plain prompt proud quick quiet ready sharp sound steady stout swift true vivid warm wise"
	inventors  = "abramson baran berners bolt boggs cerf clark cohen crocker davies dijkstra engelbart estrin feinler floyd hopper huitema jacobson kahn kapoor kleinrock knuth licklider lamport liskov lovelace metcalfe mockapetris moore nagle perlman pouzin postel roberts shannon steiner thacker turing wing zimmermann"
)

// randomName returns a name that is not taken.
func randomName(taken func(string) bool) string {
	first, last := strings.Fields(adjectives), strings.Fields(inventors)
	name := first[rand.IntN(len(first))] + "_" + last[rand.IntN(len(last))]
	for i := 2; taken(name); i++ {
		name = fmt.Sprintf("%s_%s%d", first[rand.IntN(len(first))], last[rand.IntN(len(last))], i)
	}
	return name
}
