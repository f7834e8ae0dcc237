-- The reward of each decision by the declared rules of test_streams_order, over the raw log.
with d as (
    select *, lead(question) over w as next_question, lead(t) over w as next_t
    from decisions window w as (partition by session_id order by t, id)
),
standing as (
    select * from feedback f where kind <> 'retraction' and not exists (
        select 1 from feedback r
        where r.kind = 'retraction' and r.retracts = f.id and r.user_id = f.user_id
        and r.session_id = f.session_id and r.decision_id = f.decision_id
        and r.t between f.t and f.t + $revision
    )
),
heard as (
    select d.id as of_decision, f.id, f.t, f.kind, f.score, f.name, f.decision_id,
        (
            select count(*) from decisions o
            where o.session_id = d.session_id and o.t <= f.t
            and (o.t > d.t or (o.t = d.t and o.id > d.id))
        ) as later
    from d join standing f on f.session_id = d.session_id
    where (f.decision_id = d.id or (f.decision_id = '' and f.t >= d.t))
    and f.t <= d.t + case f.kind when 'outcome' then $delay else $window end
),
shared as (
    select *, case
        when decision_id <> '' then 1.0
        when kind = 'outcome' then pow(0.5, later)
        when later = 0 then 1.0
        else 0.0 end as share
    from heard
),
rating as (
    select of_decision, 0.5 * last(score * share order by t, id) as part
    from shared where kind = 'rating' and share > 0 group by of_decision
),
named as (
    select of_decision, name, last(score * share order by t, id) as score
    from shared where kind = 'outcome' group by of_decision, name
),
outcome as (select of_decision, 0.3 * avg(score) as part from named group by of_decision),
report as (
    select of_decision, -1.0 * max(share) as part
    from shared where kind = 'report' and share > 0 group by of_decision
),
asked as (
    select id as of_decision, -0.25 as part from d
    where next_t <= t + $window
    and (lower(question) like '%reset%') = (lower(next_question) like '%reset%')
),
parts as (
    select * from rating union all select * from outcome
    union all select * from report union all select * from asked
)
select d.id, case when count(part) > 0 then least(1.0, greatest(-1.0, sum(part))) end
from d left join parts on of_decision = d.id group by d.id
